"""From a set of rows to token ids, roles and weighted batches.

sources -> formats -> rows -> templates (chat, pieces) -> spans -> tokenise (cache) -> targets ->
batches, with `tokenizer` beside them; all but `batches` is free of torch.
"""
