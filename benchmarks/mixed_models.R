# lme4's side of mixed_models.py.
#
#   Rscript benchmarks/mixed_models.R FOLDER REPEATS
#
# Exports lme4's InstEval to FOLDER/insteval.csv, fits every model of FOLDER/models.json to its
# table and writes FOLDER/lme4.json: the least processor and wall seconds of the repeats.

suppressMessages({
  library(lme4)
  library(jsonlite)
})

args <- commandArgs(trailingOnly = TRUE)
folder <- args[1]
data(InstEval, package = "lme4")
write.csv(InstEval, file.path(folder, "insteval.csv"), row.names = FALSE)

seconds <- function(expression, repeats) {
  found <- sapply(seq_len(repeats), function(k) {
    gc()
    spent <- system.time(expression())
    c(cpu = sum(spent[c("user.self", "sys.self")]), wall = spent[["elapsed"]])
  })
  as.list(apply(found, 1, min))
}

models <- read_json(file.path(folder, "models.json"))
result <- lapply(models, function(m) {
  data <- read.csv(file.path(folder, m$table), stringsAsFactors = TRUE)
  for (name in unlist(m$groups)) data[[name]] <- factor(data[[name]])
  fit <- NULL
  once <- function() fit <<- suppressWarnings(lmer(as.formula(m$formula), data))
  spent <- seconds(once, if (nrow(data) > 50000) 2 else as.integer(args[2]))
  found <- c(list(name = m$name, loglik = as.numeric(logLik(fit))), spent)
  if (m$refits > 0) {
    draws <- simulate(fit, nsim = m$refits, seed = 1)
    refits <- seconds(function() for (y in draws) suppressMessages(suppressWarnings(refit(fit, y))), 1)
    found$refits_cpu <- refits$cpu
    found$refits_wall <- refits$wall
  }
  found
})
write_json(result, file.path(folder, "lme4.json"), auto_unbox = TRUE, digits = 10)
