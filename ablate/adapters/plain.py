"""No adapter: the base model itself, and full fine-tuning."""

from ablate.adapters.method import Method

ROWS = {
    "none": Method(adapts=False),
    "full": Method(
        adapts=False,
        trains_base=True,
        precisions=("fp32", "bf16"),
        lanes="ablate.adapters.plain_lanes:kind",
    ),
}
