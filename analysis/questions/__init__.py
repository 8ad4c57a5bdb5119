"""The questions of a study, a folder each: estimate (numbers), figure, section."""
