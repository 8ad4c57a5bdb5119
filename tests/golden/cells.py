"""The cells whose identities and loss curves are stored, as override lines of the command line.

DATA stands for a folder that `write_data` has filled, so that no stored value knows where it was.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from ablate.config.schema import Model
from ablate.models.files import resolve

COMMON = ("train.lr=0.001", "evaluate=none")  # under every cell; its own lines win

ADAPTERS = (
    "none", "full", "adalora", "alora", "beft", "boft", "c3a", "delora", "dora", "fourierft",
    "glora", "gralora", "hira", "hra", "ia3", "inttune", "kasa", "lamda", "layernorm", "loha",
    "lokr", "loldu", "lora_mini", "lora_sb", "lora_xs", "mica", "miss", "mora", "mora_decouple",
    "mora_grouped_2", "mora_grouped_3", "mora_grouped_4", "mora_rotation", "mora_truncate",
    "moslora", "nlora", "nora", "oft", "p_tuning", "pmss", "prefix", "prompt", "psoft", "randlora",
    "relora", "remora", "remora_permute", "road", "rslora", "shira", "slora", "tinylora",
    "unilora", "vblora", "velora", "vera", "waveft",
)  # fmt: skip
INITS = "corda,eva,gaussian,lora_ga,olora,orthogonal,pissa,pissa_niter"
REGULARISERS = (
    "adapter_dropout,attention_dropout,kl,label_smoothing,minkowski,neftune,rank_dropout,"
    "weight_decay"
)
MASKINGS = "instruction,none,boilerplate,special,placebo,im_released"
NORMALISERS = "weight,completion,tokens,nonzero,examples"
WEIGHED = "masking=none plw=0.1"
MICROBATCH = f"{WEIGHED} loss.scope=microbatch execution.layout=padded"
ALPACA = "dataset=local dataset.path=DATA/alpaca.jsonl"
CHAT = f"dataset=local dataset.path=DATA/chat.jsonl dataset.template=chat {WEIGHED}"

# Each line is a grid; each of its cells has a stored identity.
GRIDS = (
    "masking=instruction",
    f"masking={MASKINGS} plw=0,0.1,1",
    f"masking=boilerplate plw=0.1 loss.normaliser={NORMALISERS}",
    f"{WEIGHED} loss.scope=example",
    f"{MICROBATCH} execution.micro_batch_size=null,4",
    f"{WEIGHED} completion_weight=0.5",
    "masking=none plw=0.1,1 completion_weight=0",
    "masking=none plw=1 masking.weights.completion=0",
    "loss.label_smoothing=0.1",
    "loss.token_rule=dft,power,focal,focal_detached,eaft",
    "loss.token_rule=power,focal loss.token_rule_exponent=0,1",
    f"{WEIGHED} loss.token_rule=dft,focal loss.token_rule_scope=all,completion",
    f"adapter={','.join(ADAPTERS)} rank=4",
    "adapter=lora,mora rank=2,8,16",
    "adapter=lora adapter.options.dropout=0.1 adapter.options.alpha=16",
    f"init={INITS}",
    "init=gaussian adapter=dora",
    "optimizer=lora_fa,lora_plus,riemannian",
    "optimizer=lora_plus optimizer.options.ratio=4",
    "placement=attention,layra,mlp",
    "placement=attention adapter=mora rank=4",
    "placement.modules=[q_proj,v_proj] placement.layers=[0]",
    f"regulariser={REGULARISERS}",
    "embeddings=trained adapter=lora,full",
    "base_precision=bf16 adapter=lora,none",
    "seed=1",
    "seed=7 sham=b",
    "model=micro_1,micro_2",
    "model=local model.path=DATA/model",  # the files of micro_0: the same run as the first
    # data
    f"dataset=micro_short {WEIGHED}",
    "dataset=micro_designed",
    "dataset=micro_designed dataset.options.rg=0.25 dataset.options.train_size=300",
    "dataset=micro_uuid dataset.options.pairs=50,100 evaluate=memorised",
    "dataset=micro_code,micro_math",
    "dataset.max_rows=100",
    "dataset.max_rows=100 dataset.shuffle_prompts=true",
    "dataset.max_rows=100 dataset.invert_prompt=true",
    f"{ALPACA} masking=boilerplate,none plw=0.1",
    f"{ALPACA} dataset.template=plain,chat {WEIGHED}",
    f"{ALPACA} dataset.splits.train=[0.0,0.5] dataset.splits.validation=[0.5,0.7]"
    " dataset.splits.test=[0.7,1.0]",
    CHAT,
    f"{CHAT} dataset.turns=last",
    f"{CHAT} masking=special,im_released",
    "dataset=local dataset.path=DATA/text.jsonl masking=none",
    # training
    "train.lr=tuned",
    "train.lr=tuned adapter=mora rank=4 dataset=micro_short",
    "train=alpaca train.lr=2e-5 train.max_length=256",
    "train.betas=[0.8,0.95] train.eps=1e-6 train.weight_decay=0.1 train.clip=null",
    "train.schedule=linear train.warmup_ratio=0.1 train.epochs=1",
    "train.batch_size=512 train.batch_unit=tokens train.max_steps=20",
    "train.max_length=48 train.boundary=segment",
    "train.precision=bf16",
    # scores
    "evaluate=micro adapter=lora,none",
    "evaluate=plw_micro",
    "evaluate=validation evaluate.heldout_rows=50",
    "evaluate=micro evaluate.limit=50 evaluate.num_fewshot=2 evaluate.max_new_tokens=8",
    f"{CHAT} evaluate=micro",
)

# -- curves -------------------------------------------------------------------------------------

STEPS = 12
SHORT = (
    f"{WEIGHED} train.lr=0.005 train.batch_size=8 dataset.max_rows=64 rank=4 "
    f"train.max_steps={STEPS} evaluate.heldout_rows=16 execution.device=cpu execution.threads=1 "
    "evaluate.measures=[weight_distance]"
)
PADDED = "execution.layout=padded"
CURVES: Mapping[str, str] = {
    "padded": PADDED,
    "packed": "execution.layout=packed",
    "micro_batches": f"{PADDED} execution.micro_batch_size=3",
    "mora": f"{PADDED} adapter=mora",
    "full": f"{PADDED} adapter=full train.lr=0.001",
    "dora": f"{PADDED} adapter=dora",
    "remora": f"{PADDED} adapter=remora",
    "vera": f"{PADDED} adapter=vera",
    "pissa": f"{PADDED} init=pissa",
    "lora_plus": f"{PADDED} optimizer=lora_plus",
    "embeddings": f"{PADDED} embeddings=trained",
    "smoothed": f"{PADDED} masking=boilerplate plw=1 loss.label_smoothing=0.1",
    "per_example": f"{PADDED} loss.scope=example loss.normaliser=tokens",
    "dft": f"{PADDED} loss.token_rule=dft",
    "focal": "execution.layout=packed loss.token_rule=focal loss.token_rule_scope=completion",
    "placebo": f"{PADDED} masking=placebo",
    "decay": f"{PADDED} train.weight_decay=0.1 train.clip=0.5 train.schedule=linear",
    "minkowski": f"{PADDED} regulariser=minkowski regulariser.minkowski=0.5",
    "neftune": f"{PADDED} regulariser=neftune",
    "kl": f"{PADDED} regulariser=kl",
    "sham": f"{PADDED} seed=3 sham=b regulariser=adapter_dropout",
    "chat": (
        f"{PADDED} dataset=local dataset.path=DATA/chat.jsonl dataset.template=chat masking=special"
    ),
}

# -- data ---------------------------------------------------------------------------------------

ROWS = 40
THINGS = ("river", "lamp", "stone", "garden", "wheel", "song", "letter")


def write_data(folder: Path) -> Path:
    """Fill `folder` with a small data set in three formats and a copy of a base model; return it.

    The rows are of uneven length, with and without an input, and two of them are alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alpaca, chat, text = [], [], []
    for i in range(ROWS):
        one, two = THINGS[i % 7], THINGS[i * 3 % 5]
        ask, answer = f"Say what the {one} number {i // 2} is.", f"It is a {two}." * (1 + i % 3)
        row = {"instruction": ask, "output": answer}
        alpaca.append(row | ({"input": f"A {two} and a {one}."} if i % 2 else {}))
        system = [{"role": "system", "content": f"Be a {two}."}] if i % 4 == 0 else []
        again = [
            {"role": "user", "content": f"And the {two}?"},
            {"role": "assistant", "content": f"A {one}, {i}."},
        ]
        first = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        chat.append({"messages": system + first + (again if i % 3 else [])})
        text.append({"text": f"{ask} {answer}"})
    alpaca[-1] = alpaca[0]
    for name, rows in (("alpaca", alpaca), ("chat", chat), ("text", text)):
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    source = resolve(Model(name="micro_0", source="micro", path="micro_0")).folder
    shutil.copytree(source, folder / "model", dirs_exist_ok=True)
    return folder
