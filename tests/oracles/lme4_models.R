# Fits every model of `models` with lme4 on simulated grids and stores what the tests compare with.
#
#   Rscript tests/oracles/lme4_models.R OUT     (default: the folder of this script)
#
# Writes OUT/grid.csv, OUT/unbalanced.csv and OUT/lme4_models.json. Needs lme4, lmerTest, jsonlite.
# Stored output made with R 4.2.2, lme4 1.1-31, lmerTest 3.1-3.

suppressMessages({
  library(lmerTest)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
script <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
out <- if (length(args)) args[1] else dirname(script)

set.seed(20240913)
runs <- expand.grid(plw = c(0, 0.01, 0.1, 0.5, 1), dataset = c("clean", "long", "short"),
                    adapter = c("full", "lora"), seed = 1:2, stringsAsFactors = FALSE)
runs$run <- sprintf("r%02d", seq_len(nrow(runs)))
tasks <- sprintf("t%02d", 1:9)
grid <- merge(runs, data.frame(task = tasks))
grid$wp <- grid$plw^0.30103
# A group without an effect, balanced over runs and tasks: its variance is estimated as zero.
grid$lab <- sprintf("l%d", 1 + (match(grid$run, runs$run) + match(grid$task, tasks)) %% 6)
grid$year <- 2000 + 10 * grid$wp + rnorm(nrow(grid), 0, 0.5)         # badly scaled on purpose
grid$w <- round(runif(nrow(grid), 0.3, 3), 3)
z <- matrix(rnorm(2 * length(tasks)), ncol = 2) %*% chol(matrix(c(16, -3, -3, 4), 2))
b_run <- rnorm(nrow(runs), 0, 1.1)
b_dataset <- rnorm(3, 0, 2)
i <- match(grid$task, tasks)
grid$score <- 50 + 6 * grid$wp - 5 * grid$wp^2 + 2 * (grid$adapter == "lora") +
  z[i, 1] + z[i, 2] * grid$wp + b_run[match(grid$run, runs$run)] +
  b_dataset[match(grid$dataset, c("clean", "long", "short"))] + rnorm(nrow(grid), 0, 1.5 / sqrt(grid$w))
grid <- grid[order(grid$run, grid$task), ]
grid$score <- round(grid$score, 6)
grid$wp <- round(grid$wp, 9)
grid$year <- round(grid$year, 6)
unbalanced <- grid[runif(nrow(grid)) < 0.55, ]
write.csv(grid, file.path(out, "grid.csv"), row.names = FALSE)
write.csv(unbalanced, file.path(out, "unbalanced.csv"), row.names = FALSE)

models <- list(
  list(name = "crossed intercepts", formula = "score ~ wp + I(wp^2) + (1 | task) + (1 | run)"),
  list(name = "crossed intercepts, ML", reml = FALSE,
       formula = "score ~ wp + I(wp^2) + (1 | task) + (1 | run)"),
  list(name = "correlated slopes", formula = "score ~ wp * dataset + I(wp^2) + (1 + wp | task) + (1 | run)"),
  list(name = "correlated slopes, ML", reml = FALSE,
       formula = "score ~ wp * dataset + I(wp^2) + (1 + wp | task) + (1 | run)"),
  list(name = "uncorrelated slopes", formula = "score ~ wp + adapter + (1 + wp || task) + (1 | run)"),
  list(name = "weights", weights = TRUE, formula = "score ~ wp + adapter + (1 | task) + (1 | run)"),
  list(name = "weights, slopes, ML", weights = TRUE, reml = FALSE,
       formula = "score ~ wp + I(wp^2) + (1 + wp | task) + (1 | run)"),
  list(name = "unbalanced, crossed", data = "unbalanced",
       formula = "score ~ wp + I(wp^2) + adapter + (1 | task) + (1 | run)"),
  list(name = "unbalanced, slopes", data = "unbalanced",
       formula = "score ~ wp * adapter + (1 + wp | task) + (1 | run)"),
  list(name = "unbalanced, slopes, weights", data = "unbalanced", weights = TRUE,
       formula = "score ~ wp * adapter + (1 + wp | task) + (1 | run)"),
  list(name = "singular intercept", formula = "score ~ wp + (1 | lab) + (1 | task)"),
  list(name = "singular slope", formula = "score ~ wp + dataset + (1 + wp | lab) + (1 | task) + (1 | run)"),
  list(name = "nested", formula = "score ~ wp + adapter + (1 | dataset/run)"),
  list(name = "nested within task", data = "unbalanced", formula = "score ~ wp + (1 | task/dataset)"),
  list(name = "slope alone", formula = "score ~ wp + (0 + wp | task) + (1 | run)"),
  list(name = "three crossed", formula = "score ~ wp + I(wp^2) + (1 | task) + (1 | run) + (1 | dataset)"),
  list(name = "factor slopes", formula = "score ~ wp + adapter + (0 + adapter | task) + (1 | run)"),
  list(name = "other units", formula =
         "score ~ I(year - 2005) + adapter + (1 + I(year - 2005) | task) + (1 | run)"),
  list(name = "one group, ML", reml = FALSE, formula = "score ~ wp + task + (1 | run)"),
  list(name = "one group", data = "unbalanced", formula = "score ~ wp + I(wp^2) + dataset + (1 | run)")
)

result <- lapply(models, function(m) {
  data <- if (identical(m$data, "unbalanced")) unbalanced else grid
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
  b <- length(fixef(fit))
  all <- suppressWarnings(contestMD(fit, diag(b)[-1, , drop = FALSE]))
  list(name = m$name, formula = m$formula, data = if (is.null(m$data)) "grid" else m$data,
       weights = isTRUE(m$weights), method = if (reml) "REML" else "ML",
       loglik = as.numeric(logLik(fit)), sigma = sigma(fit),
       fixef = as.list(fixef(fit)), se = as.list(table[, "Std. Error"]), df = as.list(table[, "df"]),
       random = lapply(which(is.na(sds$var2) & sds$grp != "Residual"), function(k)
         list(group = sds$grp[k], name = sds$var1[k], sd = sds$sdcor[k])),
       correlations = lapply(which(!is.na(sds$var2)), function(k)
         list(group = sds$grp[k], names = c(sds$var1[k], sds$var2[k]), corr = sds$sdcor[k])),
       joint = list(F = all[["F value"]], df = all[["NumDF"]], df_residual = all[["DenDF"]]),
       singular = isSingular(fit))
})
write_json(result, file.path(out, "lme4_models.json"), auto_unbox = TRUE, digits = 12, pretty = TRUE)
