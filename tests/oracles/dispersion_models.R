# Fits linear models whose residual variance differs between rows with nlme (varIdent) and glmmTMB
# (dispformula), and stores what the tests compare with.
#
#   Rscript tests/oracles/dispersion_models.R OUT     (default: the folder of this script)
#
# Writes OUT/panels.csv (simulated), OUT/orthodont.csv, OUT/machines.csv, OUT/bodyweight.csv (nlme's
# data sets), OUT/sleepstudy.csv (lme4's) and OUT/dispersion_models.json. Needs nlme, lme4, glmmTMB,
# jsonlite. Stored output made with R 4.2.2, nlme 3.1-162, lme4 1.1-31, glmmTMB 1.1.5.

suppressMessages(suppressWarnings({
  library(nlme)
  library(glmmTMB)
  library(jsonlite)
}))

args <- commandArgs(trailingOnly = TRUE)
script <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
out <- if (length(args)) args[1] else dirname(script)

set.seed(20261126)
runs <- data.frame(run = sprintf("r%02d", 1:20), arm = sprintf("a%d", rep(1:4, 5)), x = (0:19 %% 7) / 6)
panels <- merge(runs, expand.grid(panel = sprintf("p%02d", 1:12), item = 1:3))
panels <- panels[order(panels$run, panels$panel, panels$item), ]
panels$cell <- paste(panels$arm, panels$panel, sep = "-")
panels$site <- sprintf("s%d", 1 + (seq_len(nrow(panels)) * 5) %% 9)
panels$half <- ifelse(panels$item == 1, "first", "rest")
panels$w <- round(runif(nrow(panels), 0.4, 2.5), 3)
p <- match(panels$panel, unique(panels$panel))
by <- function(column, sd) {
  levels <- unique(column)
  rnorm(length(levels), 0, sd)[match(column, levels)]
}
panels$score <- round(50 + p + c(0, 1, 0.5, 2)[match(panels$arm, unique(panels$arm))] + 2 * panels$x +
  by(panels$run, 0.8) + by(panels$cell, 0.7) + by(panels$site, 1.1) +
  0.5 * 10^((p - 1) / 11) * exp(0.6 * panels$x) * rnorm(nrow(panels)) / sqrt(panels$w), 6)
panels <- panels[runif(nrow(panels)) < 0.9, ]
Orthodont <- as.data.frame(nlme::Orthodont)
Machines <- transform(as.data.frame(nlme::Machines), Worker = paste0("w", Worker))
BodyWeight <- transform(as.data.frame(nlme::BodyWeight), Rat = paste0("r", Rat), Diet = paste0("d", Diet))
sleepstudy <- transform(lme4::sleepstudy, Subject = paste0("s", Subject), late = ifelse(Days > 4, "yes", "no"))
tables <- list(panels = panels, orthodont = Orthodont, machines = Machines, bodyweight = BodyWeight,
               sleepstudy = sleepstudy)
for (name in names(tables)) {
  write.csv(tables[[name]], file.path(out, paste0(name, ".csv")), row.names = FALSE)
  tables[[name]] <- read.csv(file.path(out, paste0(name, ".csv")), stringsAsFactors = TRUE)
}

# `random` is lme's (none: gls); a model without it has its bars in `formula` and goes to glmmTMB.
models <- list(
  list(name = "Orthodont by Sex (fm3Orth.lme)", data = "orthodont", fixed = "distance ~ Sex * I(age - 11)",
       random = "~ I(age - 11) | Subject", bars = "(1 + I(age - 11) | Subject)", by = "Sex"),
  list(name = "Orthodont by Sex, ML", data = "orthodont", fixed = "distance ~ Sex * I(age - 11)",
       random = "~ I(age - 11) | Subject", bars = "(1 + I(age - 11) | Subject)", by = "Sex", reml = FALSE),
  list(name = "Orthodont by Sex, no random effects", data = "orthodont", fixed = "distance ~ Sex * I(age - 11)",
       random = "none", by = "Sex"),
  list(name = "Machines by Machine", data = "machines", fixed = "score ~ Machine", random = "~ 1 | Worker",
       bars = "(1 | Worker)", by = "Machine"),
  list(name = "Machines by Machine, nested", data = "machines", fixed = "score ~ Machine",
       random = "~ 1 | Worker/Machine", bars = "(1 | Worker/Machine)", by = "Machine"),
  list(name = "BodyWeight by Diet", data = "bodyweight", fixed = "weight ~ Time * Diet", random = "~ Time | Rat",
       bars = "(1 + Time | Rat)", by = "Diet"),
  list(name = "sleepstudy by half", data = "sleepstudy", fixed = "Reaction ~ Days", random = "~ Days | Subject",
       bars = "(1 + Days | Subject)", by = "late"),
  list(name = "6 panels, cells", data = "panels", small = TRUE, fixed = "score ~ panel * x",
       random = "~ 1 | cell", bars = "(1 | cell)", by = "panel"),
  list(name = "6 panels, cells, weights, ML", data = "panels", small = TRUE, fixed = "score ~ panel * x",
       random = "~ 1 | cell", bars = "(1 | cell)", by = "panel", weights = TRUE, reml = FALSE),
  list(name = "12 panels, cells", data = "panels", fixed = "score ~ panel * x", random = "~ 1 | cell",
       bars = "(1 | cell)", by = "panel"),
  list(name = "two factors crossed", data = "panels", small = TRUE, fixed = "score ~ panel + arm",
       random = "~ 1 | run", bars = "(1 | run)", by = c("panel", "half")),
  list(name = "12 panels, crossed, ML", data = "panels", fixed = "score ~ panel + arm", reml = FALSE,
       bars = "(1 | run) + (1 | site)", dispersion = "~ panel"),
  list(name = "12 panels, crossed", data = "panels", fixed = "score ~ panel + arm",
       bars = "(1 | run) + (1 | site)", dispersion = "~ panel"),
  list(name = "a covariate", data = "panels", fixed = "score ~ panel + x", reml = FALSE,
       bars = "(1 | cell) + (1 | site)", dispersion = "~ x"),
  list(name = "two factors added and a covariate", data = "panels", fixed = "score ~ panel + arm + x",
       bars = "(1 | cell) + (1 | site)", dispersion = "~ panel + half + x"),
  list(name = "slopes and crossed intercepts", data = "panels", small = TRUE, fixed = "score ~ panel + x",
       bars = "(1 + x | cell) + (1 | site)", dispersion = "~ panel * x")
)

with_nlme <- function(m, data, method) {
  ident <- varIdent(form = as.formula(paste("~ 1 |", paste(m$by, collapse = " * "))))
  weights <- if (isTRUE(m$weights)) varComb(ident, varFixed(~ I(1 / w))) else ident
  # Tighter than the defaults: an oracle should not be the less exact of the two.
  fit <- if (m$random == "none") {
    do.call(gls, list(as.formula(m$fixed), data, weights = weights, method = method,
                      control = glsControl(tolerance = 1e-10, msTol = 1e-12, maxIter = 500)))
  } else {
    do.call(lme, list(as.formula(m$fixed), data, as.formula(m$random), weights = weights, method = method,
                      control = lmeControl(tolerance = 1e-10, msTol = 1e-12, maxIter = 500, msMaxIter = 500)))
  }
  re <- if (m$random == "none") list() else lapply(fit$modelStruct$reStruct, as.matrix)
  list(beta = if (m$random == "none") coef(fit) else fixef(fit), cov = fit[[if (m$random == "none") "varBeta" else "varFix"]],
       loglik = logLik(fit), sd_rows = unname(attr(fit$residuals, "std")),
       random = unlist(lapply(re, function(v) sigma(fit) * sqrt(diag(v)))))
}

with_glmmtmb <- function(m, data, method) {
  fit <- suppressWarnings(glmmTMB(
    as.formula(paste(m$fixed, "+", m$bars)), data, dispformula = as.formula(m$dispersion),
    REML = method == "REML", control = glmmTMBControl(optCtrl = list(iter.max = 1e4, eval.max = 1e4, rel.tol = 1e-14))))
  # Up to 1.1.7 the logarithm of the variance is linear in the dispersion, later that of the SD.
  share <- if (packageVersion("glmmTMB") < "1.1.8") 0.5 else 1
  eta <- as.vector(model.matrix(as.formula(m$dispersion), data) %*% fixef(fit)$disp)
  disp <- vcov(fit, full = TRUE)
  own <- grep("^disp~|^d~", colnames(disp))
  list(beta = fixef(fit)$cond, cov = vcov(fit)$cond, loglik = logLik(fit),
       sd_rows = exp(share * eta), logs = list(names = names(fixef(fit)$disp), estimate = share *
         unname(fixef(fit)$disp), se = share * unname(sqrt(diag(disp)[own]))),
       random = unlist(lapply(VarCorr(fit)$cond, function(v) sqrt(diag(v)))))
}

result <- lapply(models, function(m) {
  data <- tables[[m$data]]
  if (isTRUE(m$small)) data <- droplevels(data[data$panel %in% sprintf("p%02d", 1:6), ])
  method <- if (identical(m$reml, FALSE)) "ML" else "REML"
  fit <- if (is.null(m$random)) with_glmmtmb(m, data, method) else with_nlme(m, data, method)
  dispersion <- if (is.null(m$dispersion)) paste("~", paste(m$by, collapse = " * ")) else m$dispersion
  first <- which(!duplicated(data[all.vars(as.formula(dispersion))]))
  first <- first[seq_len(min(length(first), 12))]
  list(name = m$name, program = if (is.null(m$random)) "glmmTMB" else "nlme", data = m$data,
       small = isTRUE(m$small), weights = isTRUE(m$weights), method = method, dispersion = dispersion,
       formula = paste(c(m$fixed, m$bars), collapse = " + "), n = nrow(data),
       loglik = as.numeric(fit$loglik), parameters = attr(fit$loglik, "df"),
       names = names(fit$beta), fixef = unname(fit$beta), se = unname(sqrt(diag(fit$cov))),
       logs = fit$logs, random = I(as.numeric(sort(fit$random))), rows = first - 1, sd = fit$sd_rows[first])
})
write_json(result, file.path(out, "dispersion_models.json"), auto_unbox = TRUE, digits = 12)
