# Fits the models below with lme4 and stores what pbkrtest, emmeans, lme4's profiles and performance
# say of them.
#
#   Rscript tests/oracles/inference_models.R OUT     (default: the folder of this script)
#
# Reads grid.csv and unbalanced.csv from the folder of this script (made by lme4_models.R), writes
# OUT/split_plot.csv, OUT/ragged.csv and OUT/inference_models.json. Needs lme4, lmerTest, pbkrtest,
# emmeans, performance, jsonlite. Stored output made with R 4.2.2, lme4 1.1-31, lmerTest 3.1-3,
# pbkrtest 0.5.2, emmeans 1.8.4-1, performance 0.10.2.

suppressMessages({
  library(lmerTest)
  library(pbkrtest)
  library(emmeans)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
script <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
out <- if (length(args)) args[1] else dirname(script)
grid <- read.csv(file.path(dirname(script), "grid.csv"))
unbalanced <- read.csv(file.path(dirname(script), "unbalanced.csv"))

set.seed(20250117)
# A balanced split plot: data sets are whole plots within blocks, adapters are sub-plots.
split_plot <- expand.grid(block = sprintf("b%d", 1:6), dataset = c("clean", "long", "short"),
                          adapter = c("full", "lora", "mora", "none"), stringsAsFactors = FALSE)
plots <- unique(split_plot[c("block", "dataset")])
own <- rnorm(nrow(plots), 0, 1.3)
place <- match(paste(split_plot$block, split_plot$dataset), paste(plots$block, plots$dataset))
split_plot$plot <- sprintf("p%02d", place)
split_plot$score <- round(40 + rnorm(6, 0, 2)[as.integer(factor(split_plot$block))] + own[place] +
  c(0, 1, 3)[as.integer(factor(split_plot$dataset))] + c(0, 1, 1.5, -2)[as.integer(factor(split_plot$adapter))] +
  rnorm(nrow(split_plot)), 6)
# A small, very unbalanced grid with a covariate that is not centred.
ragged <- expand.grid(seed = 1:5, dataset = c("clean", "long"), adapter = c("full", "lora", "mora"),
                      wp = c(0, 0.25, 0.5, 0.8, 1), stringsAsFactors = FALSE)
ragged$run <- sprintf("s%d-%s", ragged$seed, ragged$dataset)
ragged$steps <- round(100 + 40 * ragged$wp + rnorm(nrow(ragged), 0, 15), 3)
ragged$w <- round(runif(nrow(ragged), 0.4, 2.5), 3)
ragged$score <- round(30 + 4 * ragged$wp - 3 * ragged$wp^2 + 0.02 * ragged$steps +
  rnorm(10, 0, 1.5)[as.integer(factor(ragged$run))] +
  (2 + rnorm(10, 0, 1)[as.integer(factor(ragged$run))]) * ragged$wp * (ragged$adapter != "full") +
  rnorm(nrow(ragged), 0, 1), 6)
ragged <- ragged[runif(nrow(ragged)) < 0.45 + 0.3 * (ragged$adapter == "full"), ]
write.csv(split_plot, file.path(out, "split_plot.csv"), row.names = FALSE)
write.csv(ragged, file.path(out, "ragged.csv"), row.names = FALSE)
tables <- list(grid = grid, unbalanced = unbalanced, split_plot = split_plot, ragged = ragged)

means <- function(of, within = character(), at = list(), weights = "equal")
  list(of = I(of), within = I(within), at = at, weights = weights)
slope <- function(variable, within = character(), at = list(), weights = "equal")
  list(of = I(character()), within = I(within), at = at, weights = weights, variable = variable)

models <- list(
  list(name = "split plot", data = "split_plot", formula = "score ~ dataset * adapter + (1 | block) + (1 | plot)",
       asks = list(means("adapter"), means("adapter", "dataset"), means("dataset"))),
  list(name = "split plot, blocks only", data = "split_plot", formula = "score ~ dataset + adapter + (1 | block)",
       asks = list(means("adapter"), means("dataset"))),
  list(name = "crossed", data = "grid", formula = "score ~ wp + adapter + dataset + (1 | task) + (1 | run)",
       asks = list(means("adapter"), means("dataset", at = list(wp = 0.5)))),
  list(name = "crossed, quadratic", data = "unbalanced",
       formula = "score ~ (wp + I(wp^2)) * adapter + dataset + (1 | task) + (1 | run)",
       asks = list(means("adapter", at = list(wp = c(0, 0.5, 1))), means("dataset", weights = "proportional"),
                   slope("wp", "adapter", at = list(wp = 0.25)))),
  list(name = "correlated slopes", data = "unbalanced", formula = "score ~ wp * adapter + (1 + wp | task) + (1 | run)",
       asks = list(means("adapter"), slope("wp", "adapter"))),
  list(name = "uncorrelated slopes", data = "unbalanced",
       formula = "score ~ wp + dataset + (1 + wp || task) + (1 | run)", asks = list(means("dataset"), slope("wp"))),
  list(name = "weights", data = "unbalanced", weights = TRUE,
       formula = "score ~ wp * dataset + adapter + (1 | task) + (1 | run)",
       asks = list(means("dataset", "adapter"), means("adapter", weights = "proportional"))),
  list(name = "one group", data = "ragged", formula = "score ~ wp + adapter * dataset + (1 | run)",
       asks = list(means("adapter", "dataset"), means("adapter", weights = "proportional"), means("dataset"))),
  list(name = "one group, slopes", data = "ragged", formula = "score ~ wp * adapter + dataset + (1 + wp | run)",
       asks = list(means("adapter", at = list(wp = 0)), slope("wp", "adapter"))),
  list(name = "one group, covariate", data = "ragged",
       formula = "score ~ wp + I(wp^2) + adapter + steps + (1 | run)",
       asks = list(means("adapter"), slope("wp", at = list(wp = 0.8)), slope("steps"))),
  list(name = "ragged, weights", data = "ragged", weights = TRUE, formula = "score ~ wp * adapter + steps + (1 | run)",
       asks = list(means("adapter", at = list(wp = 1, steps = 120)))),
  list(name = "nested", data = "unbalanced", formula = "score ~ wp + adapter + (1 | task) + (1 | task:dataset)",
       asks = list(means("adapter"))),
  list(name = "three crossed", data = "unbalanced",
       formula = "score ~ wp + adapter + (1 | task) + (1 | run) + (1 | dataset)", asks = list(means("adapter"))),
  list(name = "singular", data = "grid", formula = "score ~ wp + adapter + (1 | lab) + (1 | task)",
       asks = list(means("adapter")))
)

asked <- function(fit, data, ask, mode) {
  at <- if (length(ask$at)) ask$at else NULL
  by <- if (length(ask$within)) as.character(ask$within) else NULL
  if (is.null(ask$variable)) {
    found <- emmeans(fit, as.character(ask$of), by = by, at = at, weights = ask$weights, data = data, lmer.df = mode)
  } else {
    specs <- if (is.null(by)) ~ 1 else by
    found <- emtrends(fit, specs, var = ask$variable, at = at, data = data,
                      lmer.df = mode, delta.var = 1e-5)  # forward: with its default the error is 1e-3
  }
  table <- as.data.frame(found)
  names(table)[grepl("emmean|trend", names(table))] <- "estimate"
  keep <- c(as.character(ask$of), as.character(ask$within))
  pairs <- NULL
  if (is.null(ask$variable)) {
    tukey <- as.data.frame(summary(pairs(found), adjust = "tukey", infer = TRUE))
    plain <- as.data.frame(summary(pairs(found), adjust = "none"))
    set.seed(1)
    many <- as.data.frame(summary(contrast(found, "trt.vs.ctrl1"), adjust = "mvt"))
    pairs <- list(contrast = plain$contrast, estimate = plain$estimate, se = plain$SE, df = plain$df,
                  p = plain$p.value, tukey = tukey$p.value, tukey_low = tukey$lower.CL,
                  dunnett = many$p.value)
  }
  list(df_rule = mode, labels = if (length(keep)) table[keep] else NULL, estimate = table$estimate,
       se = table$SE, df = table$df, pairs = pairs)
}

result <- lapply(models, function(m) {
  cat(m$name, "\n")
  data <- tables[[m$data]]
  data$.w <- if (isTRUE(m$weights)) data$w else rep(1, nrow(data))
  # Tighter than the defaults: an oracle should not be the less exact of the two.
  control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 1e5),
                         check.conv.singular = "ignore", check.conv.grad = "ignore",
                         check.conv.hess = "ignore", check.scaleX = "ignore")
  fit <- suppressWarnings(suppressMessages(
    lmer(as.formula(m$formula), data, weights = .w, control = control)))
  b <- length(fixef(fit))
  quiet <- function(x) suppressWarnings(suppressMessages(x))
  kr <- quiet(coef(summary(fit, ddf = "Kenward-Roger")))
  joint <- quiet(contestMD(fit, diag(b)[-1, , drop = FALSE], ddf = "Kenward-Roger"))
  ends <- quiet(confint(fit, method = "profile", oldNames = FALSE, quiet = TRUE))
  r2 <- quiet(performance::r2_nakagawa(fit))
  icc <- quiet(performance::icc(fit))
  modes <- quiet(as.data.frame(ranef(fit, condVar = TRUE)))
  correlation <- cov2cor(as.matrix(vcov(fit)))[-1, -1, drop = FALSE]
  list(name = m$name, formula = m$formula, data = m$data, weights = isTRUE(m$weights),
       kr = list(se = kr[, "Std. Error"], df = kr[, "df"], F = joint[["F value"]], df_residual = joint[["DenDF"]]),
       profile = lapply(rownames(ends), function(r) list(name = r, low = ends[r, 1], high = ends[r, 2])),
       r2 = if (is.list(r2)) list(marginal = r2$R2_marginal[[1]], conditional = r2$R2_conditional[[1]]) else NULL,
       icc = if (is.list(icc)) list(adjusted = icc$ICC_adjusted, unadjusted = icc$ICC_unadjusted) else NULL,
       modes = lapply(split(modes, modes$grpvar), function(part)
         list(term = as.character(part$term), level = as.character(part$grp), value = part$condval, se = part$condsd)),
       vif = diag(solve(correlation)), asks = lapply(m$asks, function(ask)
         c(ask, list(found = lapply(c("satterthwaite", "kenward-roger"), function(mode)
           quiet(asked(fit, data, ask, mode)))))))
})
write_json(result, file.path(out, "inference_models.json"), auto_unbox = TRUE, digits = 10, null = "null", na = "null")
