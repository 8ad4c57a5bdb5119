"""Writes `mlruns/`: four runs as MLflow itself keeps them in a folder.

    pip install mlflow-skinny
    MLFLOW_ALLOW_FILE_STORE=true python tests/logs/make_mlflow.py

Tags and what names the machine are left out.
"""

import shutil
import tempfile
from pathlib import Path

import mlflow
import yaml

HERE = Path(__file__).parent
KEPT = ("run_id", "run_name", "run_uuid", "status", "lifecycle_stage", "start_time", "end_time")

if __name__ == "__main__":
    shutil.rmtree(HERE / "mlruns", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"file:{folder}/mlruns")
        for adapter, lead in (("full", 0.0), ("lora", 0.05)):
            for seed in range(2):
                with mlflow.start_run(run_name=f"{adapter}_{seed}"):
                    mlflow.log_params({"adapter": adapter, "seed": seed})
                    for step in range(2):
                        value = 0.5 + lead + 0.01 * seed + (1 + seed * (lead > 0)) * step / 100
                        mlflow.log_metric("acc", round(value, 3), step=step)
                    mlflow.log_metric("eval/loss", 1.2)
        for meta in Path(folder, "mlruns").glob("*/*/meta.yaml"):
            run, place = meta.parent, HERE / "mlruns" / meta.parent.parent.name / meta.parent.name
            for part in ("params", "metrics"):
                shutil.copytree(run / part, place / part)
            about = yaml.safe_load(meta.read_text(encoding="utf-8"))
            kept = {name: about[name] for name in KEPT if name in about}
            (place / "meta.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
