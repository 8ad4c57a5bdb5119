# The side of R in glmm_speed.py: glmmTMB, and lme4 for the binomial.
#
#   Rscript benchmarks/glmm_speed.R FOLDER REPEATS
#
# Fits every model of FOLDER/models.json to FOLDER/0.csv, 1.csv, ... and writes FOLDER/found.json:
# the least processor and wall seconds of a fit and its vcov. One thread.

suppressMessages({
  library(lme4)
  library(glmmTMB)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
folder <- args[1]
repeats <- as.integer(args[2])
models <- read_json(file.path(folder, "models.json"))

timed <- function(program, index, once) {
  fit <- NULL
  found <- sapply(seq_len(repeats), function(k) {
    gc()
    spent <- system.time({
      fit <<- suppressMessages(suppressWarnings(once()))
      vcov(fit)
    })
    c(cpu = sum(spent[c("user.self", "sys.self")]), wall = spent[["elapsed"]])
  })
  c(list(program = program, model = index, loglik = as.numeric(logLik(fit))),
    as.list(apply(found, 1, min)))
}

result <- list()
for (i in seq_along(models)) {
  m <- models[[i]]
  data <- read.csv(file.path(folder, sprintf("%d.csv", i - 1)), stringsAsFactors = TRUE)
  formula <- as.formula(m$formula)
  family <- if (m$family == "beta") beta_family() else binomial()
  result <- c(result, list(timed("glmmTMB", i - 1, function() glmmTMB(formula, data, family))))
  if (m$family == "binomial") {
    result <- c(result, list(timed("lme4", i - 1, function() glmer(formula, data, family))))
  }
}
write_json(result, file.path(folder, "found.json"), auto_unbox = TRUE, digits = 10)
