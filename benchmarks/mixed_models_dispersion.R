# R's side of `mixed_models.py --dispersion`: nlme where there is one group, glmmTMB for all.
#
#   Rscript benchmarks/mixed_models_dispersion.R FOLDER REPEATS
#
# Fits every model of FOLDER/models.json to FOLDER/0.csv, 1.csv, ... by REML and writes
# FOLDER/found.json: the least processor and wall seconds of the repeats.

suppressMessages(suppressWarnings({
  library(nlme)
  library(glmmTMB)
  library(jsonlite)
}))

args <- commandArgs(trailingOnly = TRUE)
folder <- args[1]
models <- read_json(file.path(folder, "models.json"))

timed <- function(program, model, once) {
  fit <- NULL
  found <- sapply(seq_len(as.integer(args[2])), function(k) {
    gc()
    spent <- system.time(fit <<- suppressMessages(suppressWarnings(once())))
    c(cpu = sum(spent[c("user.self", "sys.self")]), wall = spent[["elapsed"]])
  })
  c(list(program = program, model = model, loglik = as.numeric(logLik(fit))),
    as.list(apply(found, 1, min)))
}

result <- list()
for (i in seq_along(models)) {
  m <- models[[i]]
  data <- read.csv(file.path(folder, sprintf("%d.csv", i - 1)), stringsAsFactors = TRUE)
  if (length(m$groups) == 1) {
    random <- as.formula(paste("~ 1 |", m$groups[[1]]))
    result <- c(result, list(timed("nlme", m$model, function()
      lme(score ~ panel * x, data, random, weights = varIdent(form = ~ 1 | panel)))))
  }
  result <- c(result, list(timed("glmmTMB", m$model, function()
    glmmTMB(as.formula(m$formula), data, dispformula = ~ panel, REML = TRUE))))
}
write_json(result, file.path(folder, "found.json"), auto_unbox = TRUE, digits = 10)
