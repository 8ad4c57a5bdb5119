# Fits models with one random effect and few rows a level by adaptive quadrature, with lme4.
#
#   Rscript tests/oracles/quadrature_models.R OUT     (default: the folder of this script)
#
# Writes OUT/pairs.csv and OUT/quadrature_models.json. Needs lme4 and jsonlite. Stored output made
# with R 4.2.2, lme4 1.1-31.

suppressMessages({
  library(lme4)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
script <- sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))
out <- if (length(args)) args[1] else dirname(script)

set.seed(20261126)
pairs <- data.frame(item = rep(sprintf("i%03d", 1:150), each = 2), wp = round(rnorm(300), 6))
pairs$trials <- sample(1:4, 300, replace = TRUE)
u <- rnorm(150)[match(pairs$item, unique(pairs$item))]
pairs$right <- rbinom(300, 1, plogis(0.5 + 0.8 * pairs$wp + 2.5 * u))
pairs$sloped <- rbinom(300, 1, plogis(0.5 + (0.8 + 1.5 * u) * pairs$wp))
pairs$accuracy <- round(rbinom(300, pairs$trials, plogis(0.8 * pairs$wp + 1.5 * u)) / pairs$trials,
                        9)
write.csv(pairs, file.path(out, "pairs.csv"), row.names = FALSE)

models <- list(c("right ~ wp + (1 | item)", 25), c("right ~ wp + (1 | item)", 5),
               c("sloped ~ wp + (0 + wp | item)", 25), c("accuracy ~ wp + (1 | item)", 25))
result <- lapply(models, function(m) {
  pairs$.w <- if (grepl("^accuracy", m[1])) pairs$trials else rep(1, nrow(pairs))
  control <- glmerControl(optimizer = "bobyqa", tolPwrss = 1e-12,
                          optCtrl = list(rhoend = 1e-10, maxfun = 1e5))
  fit <- glmer(as.formula(m[1]), pairs, binomial, weights = .w, nAGQ = as.integer(m[2]),
               control = control)
  list(name = paste(m[1], "points", m[2]), formula = m[1], points = as.integer(m[2]),
       fixef = as.list(fixef(fit)),
       se = as.list(sqrt(diag(as.matrix(vcov(fit))))),
       sd = as.numeric(attr(VarCorr(fit)$item, "stddev")))
})
write_json(result, file.path(out, "quadrature_models.json"), auto_unbox = TRUE, digits = 12,
           pretty = TRUE)
