"""Before the data: how many seeds an effect needs, and how often one may look."""
