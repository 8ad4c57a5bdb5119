"""`ablate doctor`: what it finds on machines that are made up, and on this one."""

import json
import urllib.request
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ablate.cli import main
from ablate.commands import doctor_checks
from ablate.commands.doctor import lines
from ablate.commands.doctor_checks import Finding, findings, verdict
from ablate.models import gpu_slots


@pytest.fixture
def by_name(monkeypatch):
    """Findings of one check, by name; the hub is never asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda check: {each.name: each for each in check()}


def test_on_this_machine_it_says_what_is_here_and_asks_no_network(monkeypatch, capsys):
    def asked(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(urllib.request, "urlopen", asked)
    status = main(["doctor", "--json"])
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["numpy"]["told"] == np.__version__
    assert found["torch"]["told"] == torch.__version__
    assert found["hub"]["state"] == "absent"
    assert status == any(each["state"] == "fault" for each in found.values())
    assert {"python", "GPU" if not torch.cuda.is_available() else "GPU 0"} <= set(found)
    assert {each["state"] for each in found.values()} <= {"ok", "absent", "slow", "fault"}


def test_packages_are_held_against_what_the_project_requires(by_name, monkeypatch):
    wanted = [f"numpy=={np.__version__}", "pandas>=999", "no_such_package>=1,<2",
              "no_such_either; python_version < '3'"]  # fmt: skip
    monkeypatch.setattr(doctor_checks, "_project", lambda: {"dependencies": wanted})
    found = by_name(doctor_checks._packages)
    assert found["numpy"].state == "ok"
    assert found["pandas"].state == "fault"
    assert "where >=999 is needed" in found["pandas"].told
    assert found["pandas"].advice == "pip install 'pandas>=999'"
    assert found["no_such_package"].advice == "pip install 'no_such_package<2,>=1'"
    assert "no_such_either" not in found


def test_what_a_checkout_and_an_installation_require_is_read_alike(monkeypatch):
    assert "numpy>=1.26" in doctor_checks._required()
    assert doctor_checks._extras()["ray"] == ["ray>=2.40"]
    assert "dev" not in doctor_checks._extras()
    monkeypatch.setattr(doctor_checks, "_project", dict)
    stated = ["numpy>=1.26", 'ray>=2.40; extra == "ray"', "pytest; extra == 'dev'"]
    monkeypatch.setattr(doctor_checks.metadata, "requires", lambda _: stated)
    assert doctor_checks._extras() == {"ray": ["ray>=2.40"]}
    found = {each.name: each for each in doctor_checks._packages()}
    assert found["numpy"].state == "ok"
    assert not {"ray", "pytest"} & set(found)


def _torch(**changed):
    """A torch of which only what is asked is there."""
    kernels = SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2"))
    return SimpleNamespace(
        version=SimpleNamespace(cuda=changed.get("cuda"), hip=None),
        backends=kernels,
        cuda=SimpleNamespace(
            is_available=lambda: "gpu" in changed,
            device_count=lambda: int("gpu" in changed),
            get_device_properties=lambda _: changed["gpu"],
        ),
    )


@pytest.mark.parametrize(
    ("build", "advice"), [(None, "a build for the CPU"), ("13.0", "the driver is too old")]
)
def test_a_gpu_that_torch_cannot_use_is_to_be_mended(build, advice, by_name, monkeypatch):
    monkeypatch.setattr(doctor_checks, "_torch", lambda: _torch(cuda=build))
    monkeypatch.setattr(gpu_slots, "gpus", lambda: ["0", "1"])
    found = by_name(doctor_checks._devices)["GPU"]
    assert found.state == "fault"
    assert found.told.startswith("2 here")
    assert advice in found.advice


def test_an_old_gpu_is_slow(by_name, monkeypatch):
    old = SimpleNamespace(name="T4", total_memory=16 * 2**30, major=7, minor=5)
    fake = _torch(cuda="12.8", gpu=old)
    monkeypatch.setattr(doctor_checks, "_torch", lambda: fake)
    monkeypatch.setattr(gpu_slots, "gpus", lambda: ["0"])
    found = by_name(doctor_checks._devices)
    assert found["GPU 0"].told == "T4, 16 GiB, capability 7.5"
    assert found["GPU 0 precision"].state == "slow"
    assert "no bf16" in found["GPU 0 precision"].told


@pytest.mark.parametrize(
    ("text", "count"), [("50000 100000", 0.5), ("max 100000", None), ("150000 100000", 1.5)]
)
def test_the_quota_of_a_container_counts(text, count, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(doctor_checks, "CPU_GROUP", tmp_path / "cpu.max")
    monkeypatch.setattr(doctor_checks.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert doctor_checks.cores() == (count or 8)


def test_what_makes_a_machine_slow_is_named_with_the_reason(by_name, monkeypatch):
    monkeypatch.setattr(doctor_checks, "cores", lambda: 1.0)
    monkeypatch.setattr(doctor_checks.os, "getloadavg", lambda: (9.0, 0, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    found = by_name(doctor_checks._processor) | by_name(doctor_checks._variables)
    slow = {name for name, each in found.items() if each.state == "slow"}
    assert {"cores", "load", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE"} <= slow
    assert all(found[name].advice for name in slow)


def test_folders_that_are_full_or_may_not_be_written(by_name, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "made" / "yet"))
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _: usage(2**30))
    found = by_name(doctor_checks._places)
    assert {each.state for each in found.values()} == {"slow"}
    assert found["cache of the hub"].told == f"{tmp_path}/not/made/yet, 1 GiB free"
    monkeypatch.setattr(doctor_checks.os, "access", lambda *_: False)
    found = by_name(doctor_checks._places)
    assert found["cache of ablate"].state == "fault"
    assert found["this folder"].state == "absent"


def test_the_page_fits_and_faults_are_said_last(monkeypatch, capsys):
    faulty = Finding("packages", "peft", "0.1, where >=0.21 is needed", "fault", "word " * 60)
    monkeypatch.setattr(doctor_checks, "findings", lambda: [faulty])
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["packages", "! peft               0.1, where >=0.21 is needed"]
    assert max(map(len, printed)) <= 100
    assert printed[-1] == "to mend first: peft"
    assert verdict([Finding("a", "b", "c", "slow"), Finding("a", "b", "c")]).endswith("; 1 slow")
    assert main(["doctor", "please"]) == 2
    assert "takes no words" in capsys.readouterr().err


def test_every_optional_group_of_the_project_says_what_it_is_for():
    assert set(doctor_checks._extras()) <= set(doctor_checks.USES)
    assert all(line == line.rstrip() for line in lines(findings()))
