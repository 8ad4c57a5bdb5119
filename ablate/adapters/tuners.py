"""This project's own PEFT tuner types: importing this module registers them with PEFT.

    import ablate.adapters.tuners
    model = PeftModel.from_pretrained(base, "results/mine/cells/KEY/weights")

MoRA, ReMoRA, ReLoRA and the three-factor methods are types of this project; BOFT, SHiRA and virtual
tokens need corrections of PEFT's own (`peft_compat`).
"""

import ablate.adapters.mora.layer
import ablate.adapters.mora.relora
import ablate.adapters.mora.remora
import ablate.adapters.peft_compat
import ablate.adapters.three_factor.layer  # noqa: F401
