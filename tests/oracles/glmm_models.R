# Fits every model of `models` with lme4 and glmmTMB on simulated grids and stores what the tests
# compare with: generalised models by Laplace's approximation, and linear ones with an offset.
#
#   Rscript tests/oracles/glmm_models.R OUT     (default: the folder of this script)
#
# Writes OUT/items.csv, OUT/bounded.csv and OUT/glmm_models.json. Needs lme4, glmmTMB, emmeans and
# jsonlite. Stored output made with R 4.2.2, lme4 1.1-31, glmmTMB 1.1.5, emmeans 1.8.4.1.

suppressMessages({
  library(lme4)
  library(glmmTMB)
  library(emmeans)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
script <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
out <- if (length(args)) args[1] else dirname(script)

set.seed(20250131)
runs <- expand.grid(plw = c(0, 0.01, 0.1, 1), dataset = c("clean", "long", "short"),
                    adapter = c("full", "lora"), seed = 1:2, stringsAsFactors = FALSE)
runs$run <- sprintf("r%02d", seq_len(nrow(runs)))
runs$wp <- round(runs$plw^0.30103, 9)
run_effect <- rnorm(nrow(runs), 0, 0.35)

# Right or wrong, item by item; items are nested in subjects, and some cells are missing.
item_names <- sprintf("i%02d", 1:36)
items <- merge(runs, data.frame(item = item_names))
items$subject <- sprintf("s%d", 1 + (match(items$item, item_names) - 1) %/% 6)
z <- matrix(rnorm(2 * 36), ncol = 2) %*% chol(matrix(c(1.2, -0.3, -0.3, 0.5), 2))
b_subject <- rnorm(6, 0, 0.6)
i <- match(items$item, item_names)
items$base <- round(rnorm(36, 0, 0.5)[i], 6)                                  # an offset
eta <- 0.2 + 0.9 * items$wp - 0.7 * items$wp^2 + 0.4 * (items$adapter == "lora") +
  z[i, 1] + z[i, 2] * items$wp + b_subject[1 + (i - 1) %/% 6] +
  run_effect[match(items$run, runs$run)]
items$right <- rbinom(nrow(items), 1, plogis(eta))
items <- items[runif(nrow(items)) < 0.85, ]
items <- items[order(items$run, items$item), ]
# A group that nothing varies over, and rows that make the table lopsided.
lopsided <- function(run, other) as.integer(run %% 3 != 0 | other <= 4 | run %% 2 == other %% 2)
run_number <- function(d) match(d$run, runs$run)
items$batch <- sprintf("b%d", (3 * run_number(items) + 5 * match(items$item, item_names)) %% 7)
items$some <- lopsided(run_number(items), match(items$item, item_names))
write.csv(items, file.path(out, "items.csv"), row.names = FALSE)

# Shares between 0 and 1, task by task: precise, loose and counted ones.
tasks <- sprintf("t%02d", 1:11)
bounded <- merge(runs, data.frame(task = tasks))
z <- matrix(rnorm(2 * length(tasks)), ncol = 2) %*% chol(matrix(c(0.5, -0.1, -0.1, 0.15), 2))
i <- match(bounded$task, tasks)
bounded$base <- round(rnorm(length(tasks), 0, 0.4)[i], 6)
bounded$w <- round(runif(nrow(bounded), 0.4, 2.5), 3)
bounded$trials <- sample(8:60, nrow(bounded), replace = TRUE)
eta <- -0.3 + 0.8 * bounded$wp - 0.6 * bounded$wp^2 + 0.3 * (bounded$adapter == "lora") +
  z[i, 1] + z[i, 2] * bounded$wp + run_effect[match(bounded$run, runs$run)]
share <- function(eta, phi) round(pmin(pmax(rbeta(length(eta), plogis(eta) * phi,
                                                  (1 - plogis(eta)) * phi), 1e-6), 1 - 1e-6), 9)
bounded$precise <- share(eta, 600)
bounded$usual <- share(eta, 40)
bounded$loose <- share(eta, 4)
bounded$correct <- rbinom(nrow(bounded), bounded$trials, plogis(eta))
bounded$accuracy <- round(bounded$correct / bounded$trials, 9)
bounded$ends <- ifelse(runif(nrow(bounded)) < 0.08, 0, bounded$usual)
n <- nrow(bounded)
bounded$ends_squeezed <- (bounded$ends * (n - 1) + 0.5) / n
bounded$linear <- round(50 + 10 * eta + rnorm(n, 0, 2 / sqrt(bounded$w)), 6)
bounded <- bounded[order(bounded$run, bounded$task), ]
bounded$batch <- sprintf("b%d", (3 * run_number(bounded) + 5 * match(bounded$task, tasks)) %% 7)
bounded$some <- lopsided(run_number(bounded), match(bounded$task, tasks))
write.csv(bounded[, names(bounded) != "ends_squeezed"], file.path(out, "bounded.csv"),
          row.names = FALSE)

model <- function(name, family, formula, ...) list(name = name, family = family,
                                                   formula = formula, ...)
crossed <- "(1 | item) + (1 | run)"
models <- list(
  model("items, crossed", "binomial", paste("right ~ wp + I(wp^2) + adapter +", crossed)),
  model("items, interaction", "binomial", paste("right ~ wp * dataset + adapter +", crossed)),
  model("items, one factor", "binomial", "right ~ wp + adapter + (1 | run)"),
  model("items, nested", "binomial", "right ~ wp + adapter + (1 | subject/item)"),
  model("items, three factors", "binomial",
        "right ~ wp + I(wp^2) + (1 | subject) + (1 | item) + (1 | run)"),
  model("items, correlated slopes", "binomial",
        "right ~ wp + adapter + (1 + wp | item) + (1 | run)"),
  model("items, uncorrelated slopes", "binomial",
        "right ~ wp + adapter + (1 + wp || item) + (1 | run)"),
  model("items, offset", "binomial", paste("right ~ wp + adapter + offset(base) +", crossed)),
  model("items, unbalanced", "binomial", paste("right ~ wp * adapter +", crossed), rows = "some"),
  model("items, singular", "binomial", paste("right ~ wp + adapter + (1 | batch) +", crossed)),
  model("items, no random effects", "binomial", "right ~ wp * adapter"),
  model("counts, crossed", "binomial", "accuracy ~ wp + I(wp^2) + adapter + (1 | task) + (1 | run)",
        weights = "trials"),
  model("counts, slopes", "binomial", "accuracy ~ wp * adapter + (1 + wp | task) + (1 | run)",
        weights = "trials"),
  model("counts, offset", "binomial", "accuracy ~ wp + offset(base) + (1 | task) + (1 | run)",
        weights = "trials"),
  model("counts, unbalanced", "binomial", "accuracy ~ wp + dataset + (1 | task) + (1 | run)",
        weights = "trials", rows = "some"),
  model("counts, own effect of every row", "binomial", weights = "trials",
        "accuracy ~ wp + adapter + (1 | task) + (1 | run:task)"),
  model("beta, crossed", "beta", "usual ~ wp + I(wp^2) + adapter + (1 | task) + (1 | run)"),
  model("beta, interaction", "beta", "usual ~ wp * dataset + adapter + (1 | task) + (1 | run)"),
  model("beta, precise", "beta", "precise ~ wp + I(wp^2) + adapter + (1 | task) + (1 | run)"),
  model("beta, loose", "beta", "loose ~ wp + I(wp^2) + adapter + (1 | task) + (1 | run)"),
  model("beta, one factor", "beta", "usual ~ wp + task + (1 | run)"),
  model("beta, nested", "beta", "loose ~ wp + adapter + (1 | dataset/run)"),
  model("beta, correlated slopes", "beta", "usual ~ wp + adapter + (1 + wp | task) + (1 | run)"),
  model("beta, uncorrelated slopes", "beta",
        "precise ~ wp + adapter + (1 + wp || task) + (1 | run)"),
  model("beta, weights", "beta", "usual ~ wp + adapter + (1 | task) + (1 | run)", weights = "w"),
  model("beta, offset", "beta", "usual ~ wp + adapter + offset(base) + (1 | task) + (1 | run)"),
  model("beta, offset, weights, slopes", "beta", weights = "w",
        "loose ~ wp + offset(base) + (1 + wp | task) + (1 | run)"),
  model("beta, unbalanced", "beta", "usual ~ wp * adapter + (1 | task) + (1 | run)", rows = "some"),
  model("beta, singular", "beta", "usual ~ wp + adapter + (1 | batch) + (1 | task) + (1 | run)"),
  model("beta, no random effects", "beta", "loose ~ wp * adapter"),
  model("beta, squeezed", "beta_squeezed", "ends ~ wp + adapter + (1 | task) + (1 | run)"),
  model("beta, zeros apart", "beta_inflated", "ends ~ wp + adapter + (1 | task) + (1 | run)"),
  model("linear, offset", "gaussian", "linear ~ wp + offset(base) + (1 | task) + (1 | run)"),
  model("linear, offset, weights, slopes", "gaussian", weights = "w",
        "linear ~ wp + adapter + offset(I(10 * base)) + (1 + wp | task) + (1 | run)"),
  model("linear, weights, ML", "gaussian", weights = "w", method = "ML",
        "linear ~ wp + I(wp^2) + (1 | task) + (1 | run)")
)

with_means <- c("items, interaction", "items, crossed", "counts, slopes", "beta, interaction",
                "beta, loose", "beta, weights", "beta, offset")
with_modes <- c("counts, slopes", "items, three factors")

spread <- function(v) {          # of one fit: standard deviations and correlations, by group
  parts <- lapply(names(v), function(g) lapply(seq_along(attr(v[[g]], "stddev")), function(k)
    list(group = g, name = names(attr(v[[g]], "stddev"))[k], sd = attr(v[[g]], "stddev")[[k]])))
  do.call(c, parts)
}

with_lme4 <- function(m, formula, data) {
  if (!grepl("|", m$formula, fixed = TRUE)) {
    fit <- glm(formula, binomial, data, weights = .w, control = list(epsilon = 1e-12))
    return(list(loglik = as.numeric(logLik(fit)), fixef = as.list(coef(fit)),
                se = as.list(sqrt(diag(vcov(fit)))), random = list()))
  }
  tight <- list(rhoend = 1e-9, maxfun = 1e5)
  fit <- suppressWarnings(suppressMessages(if (m$family == "gaussian")
    lmer(formula, data, weights = .w, REML = !identical(m$method, "ML"),
         control = lmerControl(optimizer = "bobyqa", optCtrl = tight))
  else glmer(formula, data, binomial, weights = .w,
             control = glmerControl(optimizer = "bobyqa", optCtrl = tight, tolPwrss = 1e-10))))
  found <- list(loglik = as.numeric(logLik(fit)), fixef = as.list(fixef(fit)),
                se = as.list(sqrt(diag(as.matrix(vcov(fit))))), random = spread(VarCorr(fit)))
  if (m$family == "gaussian") found$sigma <- sigma(fit)
  if (m$name %in% with_modes) {
    modes <- as.data.frame(ranef(fit, condVar = TRUE))
    found$modes <- lapply(modes, function(v) if (is.factor(v)) as.character(v) else v)
  }
  found
}

with_emmeans <- function(fit, data) {    # means on both scales, and slopes over wp
  over <- if ("dataset" %in% all.vars(formula(fit))) "dataset" else "adapter"
  as_list <- function(grid) as.list(as.data.frame(summary(grid, infer = c(TRUE, FALSE))))
  grid <- emmeans(fit, over, data = data, df = Inf, offset = 0)
  list(over = over, link = as_list(grid),
       response = as_list(update(grid, predict.type = "response")),
       pairs = as_list(pairs(grid, adjust = "none")),
       ratios = as_list(update(pairs(grid, adjust = "none"), predict.type = "response")),
       slopes = as_list(emtrends(fit, over, var = "wp", data = data, df = Inf)))
}

with_glmmtmb <- function(m, formula, data) {
  family <- if (m$family == "binomial") binomial() else beta_family()
  zeros <- if (m$family == "beta_inflated") ~1 else ~0
  if (m$family == "beta_squeezed") formula <- update(formula, ends_squeezed ~ .)
  control <- glmmTMBControl(optCtrl = list(iter.max = 5000, eval.max = 5000, rel.tol = 1e-13))
  fit <- suppressWarnings(do.call(glmmTMB, list(formula, data, family, ziformula = zeros,
                                                weights = data$.w, control = control)))
  found <- list(loglik = as.numeric(logLik(fit)), fixef = as.list(fixef(fit)$cond),
                se = as.list(sqrt(diag(vcov(fit)$cond))), random = spread(VarCorr(fit)$cond))
  if (m$family != "binomial") found$phi <- sigma(fit)
  if (m$name %in% with_means) found$means <- with_emmeans(fit, data)
  found
}

result <- lapply(models, function(m) {
  data <- if (grepl("^right", m$formula)) items else bounded
  if (!is.null(m$rows)) data <- data[data[[m$rows]] == 1, ]
  data$.w <- if (is.null(m$weights)) rep(1, nrow(data)) else data[[m$weights]]
  formula <- as.formula(m$formula)
  m$data <- if (grepl("^right", m$formula)) "items" else "bounded"
  if (m$family %in% c("binomial", "gaussian")) m$lme4 <- with_lme4(m, formula, data)
  if (m$family != "gaussian") m$glmmTMB <- with_glmmtmb(m, formula, data)
  m
})
write_json(result, file.path(out, "glmm_models.json"), auto_unbox = TRUE, digits = 12,
           pretty = TRUE)
