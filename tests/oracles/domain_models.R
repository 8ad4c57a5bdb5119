# Fits the models of a prompt-loss-weight study with lme4 on a simulated grid, and stores what the
# tests compare with: fits, Satterthwaite's df (lmerTest) and marginal means (emmeans).
#
#   Rscript tests/oracles/domain_models.R OUT     (default: the folder of this script)
#
# Writes OUT/domain.csv and OUT/domain_models.json. Needs lme4, lmerTest, emmeans, jsonlite.
# Stored output made with R 4.2.2, lme4 1.1-31, lmerTest 3.1-3, emmeans 1.8.4-1.

suppressMessages({
  library(lmerTest)
  library(emmeans)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
script <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
out <- if (length(args)) args[1] else dirname(script)

set.seed(20250203)
# Two ways to weigh the prompt that are the same run at weight 0: it is there once, under `down`.
arms <- data.frame(adapter = c("full", "lora", "lora", "mora"), lrank = c(0, -1, 1, 0.5),
                   stringsAsFactors = FALSE)
runs <- merge(expand.grid(plw = c(0, 0.01, 0.1, 0.5, 1), mode = c("down", "invert"),
                          dataset = c("clean", "long"), stringsAsFactors = FALSE), arms)
runs <- runs[!(runs$plw == 0 & runs$mode == "invert"), ]
runs <- runs[order(runs$adapter, runs$lrank, runs$dataset, runs$mode, runs$plw), ]
runs$run <- sprintf("r%02d", seq_len(nrow(runs)))
runs$wp <- round(runs$plw^0.30103, 9)
runs$seed <- sprintf("s%d", 1 + (seq_len(nrow(runs)) * 7) %% 3)
runs$lora <- ifelse(runs$adapter == "lora", runs$lrank, 0)
tasks <- sprintf("t%02d", 1:10)
domain <- merge(runs, data.frame(task = tasks))
domain <- domain[order(domain$run, domain$task), ]
i <- match(domain$task, tasks)
own <- matrix(rnorm(3 * length(tasks)), ncol = 3) %*%
  chol(matrix(c(25, -4, 1, -4, 6, -4, 1, -4, 5), 3))
domain$base <- round(rnorm(length(tasks), 0, 3)[i], 6)              # the base model's score
domain$w <- round(runif(nrow(domain), 0.3, 3), 3)                   # items behind a score
curve <- ifelse(domain$mode == "down", 7, 4) * domain$wp - ifelse(domain$mode == "down", 6, 5) * domain$wp^2
domain$score <- round(45 + curve + 0.8 * domain$lora + c(full = 0, lora = 0.5, mora = -1)[domain$adapter] +
  1.5 * (domain$dataset == "long") + domain$base + own[i, 1] + own[i, 2] * domain$wp +
  own[i, 3] * domain$wp^2 + rnorm(nrow(runs), 0, 0.9)[match(domain$run, runs$run)] +
  rnorm(nrow(domain), 0, 1.4 / sqrt(domain$w)), 6)
domain$some <- as.integer(runif(nrow(domain)) < 0.6)                # a table with missing scores
domain <- domain[c("run", "plw", "mode", "dataset", "adapter", "lrank", "lora", "seed", "wp", "task",
                   "base", "w", "some", "score")]
write.csv(domain, file.path(out, "domain.csv"), row.names = FALSE)

models <- list(
  list(name = "modes share weight 0", means = "dataset",
       formula = "score ~ dataset + wp:mode + I(wp^2):mode + (1 | task) + (1 | run)"),
  list(name = "modes share weight 0, tasks fixed, ML", reml = FALSE, means = "task",
       formula = "score ~ task + dataset + wp:mode + I(wp^2):mode + (1 | run)"),
  list(name = "offset", means = "adapter",
       formula = "score ~ wp + I(wp^2) + adapter + offset(base) + (1 | task) + (1 | run)"),
  list(name = "offset, weights, task slopes, ML", weights = TRUE, reml = FALSE, means = "adapter",
       formula = "score ~ wp + I(wp^2) + adapter + offset(base) + (1 + wp | task) + (1 | run)"),
  list(name = "rank of one adapter", means = "adapter",
       formula = "score ~ (wp + I(wp^2)) * lora + adapter + (1 + wp | task) + (1 | run)"),
  list(name = "seed blocks", weights = TRUE, means = c("dataset", "seed"),
       formula = "score ~ wp + I(wp^2) + dataset * seed + (1 | task) + (1 | run)"),
  list(name = "quadratic task slopes", weights = TRUE, means = "mode",
       formula = "score ~ wp * mode + I(wp^2) + (1 + wp + I(wp^2) | task) + (1 | run)"),
  list(name = "quadratic task slopes, uncorrelated", means = "mode",
       formula = "score ~ wp * mode + I(wp^2) + (1 + wp + I(wp^2) || task) + (1 | run)"),
  list(name = "scores missing, task slopes", some = TRUE, means = c("adapter", "dataset"),
       formula = "score ~ wp + I(wp^2) + adapter * dataset + (1 + wp | task) + (1 | run)"),
  list(name = "scores missing, tasks fixed", some = TRUE, weights = TRUE, means = "task",
       formula = "score ~ task + wp * adapter + I(wp^2) + (1 | run)"),
  list(name = "tasks within data sets", some = TRUE, means = "adapter",
       formula = "score ~ wp + adapter + (1 | task / dataset) + (1 | run)")
)

result <- lapply(models, function(m) {
  data <- if (isTRUE(m$some)) domain[domain$some == 1, ] else domain
  data$.w <- if (isTRUE(m$weights)) data$w else rep(1, nrow(data))
  # Tighter than the defaults: an oracle should not be the less exact of the two.
  control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 1e5),
                         check.conv.singular = "ignore", check.conv.grad = "ignore",
                         check.conv.hess = "ignore", check.scaleX = "ignore")
  reml <- !identical(m$reml, FALSE)
  fit <- suppressWarnings(suppressMessages(
    lmer(as.formula(m$formula), data, weights = .w, REML = reml, control = control)))
  sds <- as.data.frame(VarCorr(fit))
  table <- suppressWarnings(suppressMessages(coef(summary(fit))))
  found <- as.data.frame(suppressWarnings(suppressMessages(
    emmeans(fit, m$means, data = data, lmer.df = "satterthwaite", offset = 0))))
  list(name = m$name, formula = m$formula, some = isTRUE(m$some), weights = isTRUE(m$weights),
       method = if (reml) "REML" else "ML", n = nrow(data),
       loglik = as.numeric(logLik(fit)), sigma = sigma(fit), singular = isSingular(fit),
       fixef = fixef(fit), se = table[, "Std. Error"], df = table[, "df"], names = names(fixef(fit)),
       random = lapply(which(is.na(sds$var2) & sds$grp != "Residual"), function(k)
         list(group = sds$grp[k], name = sds$var1[k], sd = sds$sdcor[k])),
       means = list(of = I(m$means), labels = found[m$means], estimate = found$emmean, se = found$SE,
                    df = found$df))
})
write_json(result, file.path(out, "domain_models.json"), auto_unbox = TRUE, digits = 12)
