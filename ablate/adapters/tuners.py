"""This project's own PEFT tuner types: importing this module registers them with PEFT.

    import ablate.adapters.tuners
    model = PeftModel.from_pretrained(base, "results/mine/cells/KEY/weights")

MoRA, ReMoRA, ReLoRA and the three-factor methods are types of this project; BOFT, SHiRA and virtual
tokens need corrections of PEFT's own (`peft_compat`).
"""

from ablate.adapters import peft_compat
from ablate.adapters.mora import layer as mora
from ablate.adapters.mora import relora, remora
from ablate.adapters.three_factor import layer as three_factor

__all__ = ["mora", "peft_compat", "relora", "remora", "three_factor"]
