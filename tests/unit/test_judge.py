"""Judged answers: verdicts, both orders, length control, and what an endpoint may do."""

import contextlib
import http.server
import json
import socket
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

from ablate.cli import main
from ablate.commands import judge as verb
from ablate.errors import UserError
from ablate.judge import arms, carried
from ablate.judge import endpoint as endpoints
from ablate.judge.answers import Prompt
from ablate.judge.arms import Pair
from ablate.judge.asked import PROMPTS, Question, Reply, filled, read_verdict
from ablate.judge.carried import Contest
from ablate.judge.endpoint import EndpointJudge, Reaching
from ablate.judge.jsonl import append, rows
from ablate.judge.local import LocalJudge
from ablate.judge.rule import RuleJudge
from ablate.micro.tasks import items
from ablate.results.spreadsheet import write_csv
from ablate.results.store import Store
from analysis.questions.judging import estimate, section
from tests.imports import ROOT

SECRET = "sk-secret-0123456789"


@pytest.mark.parametrize(
    ("mode", "text", "verdict"),
    [
        ("pairwise", "A", 1.0), ("pairwise", " **B**.", 0.0), ("pairwise", "Answer: B", 0.0),
        ("pairwise", "I first liked [[B]], but [[A]]", 1.0), ("pairwise", "A is better", None),
        ("pairwise", "", None), ("pairwise", None, None),
        ("pairwise", "not [[A]] but [[D]]", None), ("pairwise", "[[1]]", None),
        ("pairwise", "D", None), ("grade", "[[A]]", None), ("pairwise", "[[ b ]]", 0.0),
        ("pairwise", "." * 10**6 + "?", None),  # and quickly ("three_way", "tie", 0.5),
        ("three_way", "[[C]]", 0.5), ("grade", "7", 7.0), ("grade", "Rating: [[8.5]]", 8.5),
        ("grade", "9/10", 9.0), ("grade", "0", None), ("grade", "11", None), ("grade", "A", None),
    ],
)  # fmt: skip
def test_verdicts(mode, text, verdict):
    assert read_verdict(mode, text) == verdict


def test_an_answer_that_names_fields_stays_what_it_says():
    question = Question("pairwise", "p", ("{second}", "two"))
    text = filled(PROMPTS["pairwise"], question)
    assert "[Answer A]\n{second}\n" in text
    assert "[Reference answer]" not in text


def contests(count, *, equal=0):
    pair = Pair("adapter=lora", "adapter=full", "0", "aa", "bb")
    return [
        Contest(pair, Prompt("t", i, f"prompt {i}", None), f"long answer {i}", f"answer {i}")
        for i in range(count)
    ] + [Contest(pair, Prompt("t", count + i, "p", None), "same", "same") for i in range(equal)]


class Biased:
    """Says A with probability `first`, whatever the answers are; counts what it is asked."""

    name = "biased"
    identity = {"kind": "biased"}

    def __init__(self, first):
        self.rng, self.first, self.asked = np.random.default_rng(3), first, 0

    def ask(self, questions):
        for number, _ in enumerate(questions):
            self.asked += 1
            yield number, Reply("A" if self.rng.random() < self.first else "B")


def test_a_bias_of_position_is_found_and_makes_no_winner(tmp_path):
    judge = Biased(0.9)
    plan = carried.planned(
        Store(tmp_path), judge, "pairwise", contests(400, equal=20), references=False
    )
    assert "420 pairs of answers, 800 requests, 20 pairs of equal texts" in plan.cost()
    found, failed = carried.carried_out(plan)
    row = estimate.win_rates(pd.DataFrame(found)).iloc[0]
    assert (failed, judge.asked, row["identical"]) == (0, 800, 20)
    # of independent verdicts: A twice .81, B twice .01, so that 82 % disagree with their swap
    assert row["inconsistent"] == pytest.approx(0.82, abs=3 * np.sqrt(0.82 * 0.18 / 400))
    assert row["first_low"] < 0.9 < row["first_high"]
    assert row["first_low"] > 0.5
    assert row["low"] < 0.5 < row["high"]
    again = carried.planned(
        Store(tmp_path), judge, "pairwise", contests(400, equal=20), references=False
    )
    assert (again.missing, carried.carried_out(again)[0]) == ([], found)
    assert judge.asked == 800


def test_a_torn_line_costs_that_reply_alone(tmp_path):
    file = tmp_path / "replies.jsonl"
    append(file, [{"id": "a"}])
    with file.open("a") as stream:
        stream.write("[" * 100_000 + "\n")
        stream.write('{"id": "b", "rep')
    append(file, [{"id": "c"}])
    assert [row["id"] for row in rows(file)] == ["a", "c"]


@pytest.mark.parametrize("mode", ["pairwise", "grade"])
def test_where_no_reply_has_a_verdict_that_is_said_and_no_number(tmp_path, mode):
    class Silent:
        name, identity = "silent", {"kind": "test"}

        def ask(self, questions):
            return ((n, Reply("I cannot say.")) for n in range(len(questions)))

    plan = carried.planned(Store(tmp_path), Silent(), mode, contests(12, equal=0), references=False)
    judgments, _ = carried.carried_out(plan)
    told = [line for line in verb.tabulated(tmp_path, judgments, mode) if line.startswith("  ")]
    assert told == ["  no verdict; 12 without a verdict"]


def drawn(rng, prompts, *, theta, phi, seeds=1, spread=0.0):
    """Preferences of known truth: logit p = theta + phi tanh(d / s) + an effect of the prompt."""
    item = np.repeat(np.arange(prompts), seeds)
    d = rng.normal(60, 100, len(item)).round()
    effect = rng.normal(0, spread, prompts)[item]
    p = expit(theta + phi * np.tanh(d / d.std()) + effect)
    return (rng.random(len(item)) < p).astype(float), d, item


def test_length_control_finds_the_truth_and_is_another_programs_fit():
    y, d, item = drawn(np.random.default_rng(0), 4000, theta=-0.4, phi=1.5)
    found = estimate.length_controlled(y, d, item)
    assert y.mean() > 0.5 > found["lc_high"]  # longer answers win; at equal length they lose
    assert found["lc_low"] < expit(-0.4) < found["lc_high"]
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    peer.fit(np.tanh(d / d.std())[:, None], y)
    assert found["lc_win_rate"] == pytest.approx(expit(peer.intercept_[0]), abs=1e-6)


def test_length_control_says_nothing_where_nothing_is_identified():
    d = np.arange(-20.0, 20.0)
    item = np.arange(40)
    for y in (np.ones(40), (d > 0).astype(float)):
        assert np.isnan(list(estimate.length_controlled(y, d, item).values())).all()
    half = np.tile([0.0, 1.0], 20)
    assert estimate.length_controlled(half, 0 * d, item)["lc_win_rate"] == pytest.approx(0.5)


def test_intervals_cover_at_two_seeds_a_prompt():
    rng, hits = np.random.default_rng(1), np.zeros(2)
    draws = 200
    truth = expit(0.3 + rng.normal(0, 1.5, 200_000)).mean()  # over prompts
    for _ in range(draws):
        y, _, item = drawn(rng, 80, theta=0.3, phi=0.0, seeds=2, spread=1.5)
        low, high = estimate.clustered_share(pd.Series(y), pd.Series(item))
        mean = estimate.clustered_mean(pd.Series(y), pd.Series(item))
        hits += (low < truth < high), (mean.low < truth < mean.high)
    # the first is conservative; of 200 draws at 95 % fewer than 180 are seen once in 400 times
    assert (hits >= 180).all()
    naive = 1.96 * np.sqrt(0.25 / 160)
    assert (high - low) / 2 > naive  # two answers to a prompt are no two prompts


def test_a_rule_knows_who_is_better():
    doc = items()["micro_translation"][0][0]
    good, bad = doc["target"], "pig."
    ask = [
        Question("pairwise", "", (good, bad), None, "micro_translation", 0),
        Question("pairwise", "", (bad, good), None, "micro_translation", 0),
        Question("three_way", "", (bad, bad), None, "micro_translation", 0),
        Question("grade", "", (good,), None, "micro_translation", 0),
    ]
    replies = [reply.text for _, reply in RuleJudge().ask(ask)]
    said = [read_verdict(q.mode, text) for q, text in zip(ask, replies, strict=True)]
    assert said == [1.0, 0.0, 0.5, 10.0]


def test_a_local_judge_says_what_its_model_finds_likelier():
    path = ROOT / "ablate" / "micro" / "checkpoints" / "micro_0"
    ask = [Question("three_way", "a sum", (f"{n}", "two")) for n in ("one", "three")]
    judge = LocalJudge(str(path), "{prompt} {first} {second} is", batch_size=2, device="cpu")
    replies = dict(judge.ask(ask))
    model, tokenizer = (c.from_pretrained(path) for c in (AutoModelForCausalLM, AutoTokenizer))
    for number, question in enumerate(ask):
        said = [{"role": "user", "content": filled("{prompt} {first} {second} is", question)}]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        size = len(tokenizer.encode(text.rstrip(), add_special_tokens=False))  # as lm-eval cuts
        found = {}
        for option in ("A", "B", "tie"):
            ids = tokenizer.encode(text + option, add_special_tokens=False)
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            found[option] = sum(float(logp[i - 1, ids[i]]) for i in range(size, len(ids)))
        assert dict(replies[number].extra["logprobs"]) == pytest.approx(found, abs=1e-4)
        assert replies[number].text == max(found, key=found.get)


def chat(text):
    body = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 9}}
    return 200, json.dumps(body)


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that says one thing after the other, the last for ever."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    script, seen = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            status, text = script.pop(0) if len(script) > 1 else script[0]
            if status == 0:  # hangs until the client has gone
                threading.Event().wait(0.6)
                return
            if status == -1:  # a little of the answer all the time, and no end
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(400):
                        self.wfile.write(b" ")
                        threading.Event().wait(0.05)
                return
            short = status < -1  # closes the connection before the end
            status = abs(status)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(text) + 9 * short))
            self.end_headers()
            with contextlib.suppress(OSError):  # a client that has read enough
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1", script, seen
    httpd.shutdown()
    httpd.server_close()


def endpoint(url, **how):
    reaching = Reaching(timeout=how.pop("timeout", 30), tries=5, wait=0.01, parallel=1)
    return EndpointJudge(url, "judge-1", PROMPTS["pairwise"], reaching=reaching)


ONE = [Question("pairwise", "p", ("x", "y"))]


def test_what_passes_is_tried_again(server):
    url, script, seen = server
    script += [(429, "slow"), (500, "oh"), (200, "{no json"), (200, '{"choices": []}'), chat("B")]
    ((_, reply),) = endpoint(url).ask(ONE)
    assert (reply.text, dict(reply.extra)) == ("B", {"prompt_tokens": 9})
    assert len(seen) == 5
    path, key, body = seen[-1]
    assert (path, key, body["model"], body["temperature"]) == (
        "/v1/chat/completions", f"Bearer {SECRET}", "judge-1", 0,
    )  # fmt: skip


BROKEN = [
    (200, ""), (200, "null"), (200, "[]"), (200, '"A"'), (200, "<html>502</html>"), (200, "\x00"),
    (200, '{"choices": [{"message": {"content": ["A"]}}]}'), (200, '{"choices": [{"text": "A"}]}'),
    (200, "[" * 100_000), (200, " " * (endpoints.LARGEST + 1)), (-200, chat("A")[1]),
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_an_answer_that_is_none_is_tried_again(server, broken):
    url, script, seen = server
    script += [broken, chat("B")]
    ((_, reply),) = endpoint(url).ask(ONE)
    assert (reply.text, reply.error, len(seen)) == ("B", "", 2)


@pytest.mark.parametrize("content", [None, "", "Both are good.", "\ud800", "x" * 10**6 + "[[A]]"])
def test_a_reply_without_a_verdict_is_kept_and_a_long_one_by_its_end(server, tmp_path, content):
    url, script, _ = server
    script.append(chat(content))
    plan = carried.planned(
        Store(tmp_path), endpoint(url), "pairwise", contests(1), references=False
    )
    found, failed = carried.carried_out(plan)
    decided = (content or "").endswith("[[A]]")
    # of a judge that says A in both orders
    assert (failed, found[0]["preference"]) == (0, 0.5 if decided else None)
    assert plan.file.stat().st_size < 3 * endpoints.KEPT


def test_no_other_question_is_put_to_a_server_that_answers_none(tmp_path, monkeypatch):
    """It may be down: hundreds of questions, each tried for half a minute, would take hours."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    judge = endpoint(f"http://127.0.0.1:{port}/v1")
    sent = []
    post = judge._post
    monkeypatch.setattr(judge, "_post", lambda question: sent.append(1) or post(question))
    replies = dict(judge.ask(ONE * 50))
    errors = [replies[number].error for number in range(50)]
    assert "refused" in errors[0]
    assert errors[-1] == endpoints.UNASKED
    assert all(reply.text is None for reply in replies.values())
    assert len(sent) <= 5 * (endpoints.UNREACHABLE + 1)  # 5 tries; one more may be under way


@pytest.mark.parametrize("key", ["sk-secret-01\nX-Other: 1", "sk-secret 01", "sk-secret-é01"])
def test_a_key_that_no_header_holds_is_refused_without_it(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY has a space") as told:
        endpoint("http://127.0.0.1:9/v1")
    assert "secret" not in str(told.value)


def test_a_key_in_place_of_its_variable_is_refused_without_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("sksecret0123", raising=False)
    out = folder(tmp_path / "r")
    words = ["--judge", "m", "--base-url", "http://127.0.0.1:9/v1", "--key-env", "sksecret0123"]
    assert main(["judge", str(out), *words]) == 2
    said = capsys.readouterr()
    assert "--key-env: no environment variable of this name is set" in said.err
    assert "sksecret" not in said.err + said.out


def test_no_part_of_the_key_is_said(server, monkeypatch):
    """A message is cut to a length, and JSON may write a key otherwise than it is."""
    key = "sk/secret/0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    url, script, _ = server
    for text in ("x" * 190 + key, json.dumps({"error": key}).replace("/", "\\/")):
        script[:] = [(401, text)]
        with pytest.raises(UserError, match="HTTP 401") as told:
            list(endpoint(url).ask(ONE))
        assert "secret" not in str(told.value)
    script[:] = [(-401, key)]  # and an answer that breaks off
    with pytest.raises(UserError, match="HTTP 401"):
        list(endpoint(url).ask(ONE))


def test_a_word_in_place_of_a_key_is_no_secret(server, monkeypatch):
    """Servers on one's own machine take any; a verdict must not be taken for it."""
    monkeypatch.setenv("OPENAI_API_KEY", "A")
    url, script, _ = server
    script.append(chat("A"))
    ((_, reply),) = endpoint(url).ask(ONE)
    assert reply.text == "A"


@pytest.mark.parametrize("broken", [(0, ""), (-1, "")])
def test_a_timeout_is_tried_again(server, broken):
    url, script, seen = server
    script += [broken, chat("A")]
    ((_, reply),) = endpoint(url, timeout=0.3).ask(ONE)
    assert (reply.text, len(seen)) == ("A", 2)


def test_what_never_passes_is_told_and_asked_again_by_the_next(server, tmp_path):
    url, script, _ = server
    script.append((503, f"down, {SECRET}"))
    plan = carried.planned(
        Store(tmp_path), endpoint(url), "pairwise", contests(1), references=False
    )
    found, failed = carried.carried_out(plan)
    assert (failed, found[0]["preference"]) == (2, None)
    assert "HTTP 503, after 5 tries" in found[0]["errors"][0]
    script[:] = [chat(f"{SECRET} says A"), chat("B")]  # the key said back: no verdict
    again = carried.planned(
        Store(tmp_path), endpoint(url), "pairwise", contests(1), references=False
    )
    found, failed = carried.carried_out(again)
    table = estimate.win_rates(pd.DataFrame(found))
    assert (failed, table["unparsable"].tolist()) == (0, [1])
    carried.written(tmp_path / "j", found, dict(again.judge.identity))
    text = "".join(f.read_text() for f in tmp_path.rglob("*") if f.is_file())
    assert "*** says A" in text
    assert SECRET not in text


@pytest.mark.parametrize("status", [400, 401, 302])
def test_a_refusal_ends_it_without_the_key(server, status):
    url, script, seen = server
    script.append((status, f"wrong key {SECRET}"))
    with pytest.raises(UserError, match=f"HTTP {status}") as told:
        list(endpoint(url).ask(ONE))
    assert SECRET not in str(told.value)
    assert len(seen) == 1


def folder(path):
    """Results of two adapters with two seeds: a table, and no records."""
    table = pd.DataFrame(
        [
            {"train_key": f"{a}{p}{s}", "status": "done", "alias": False, "adapter": a, "plw": p,
             "seed": s, "dataset": "micro", "model": "micro_0", "lr": 1e-3 if a == "full" else 1e-2}
            for a in ("full", "lora") for p in (0.0, 1.0) for s in (0, 1)
        ]
    )  # fmt: skip
    path.mkdir()
    table.to_parquet(path / "results.parquet")
    return path


def test_runs_are_judged_beside_those_that_share_their_levels(tmp_path):
    out = folder(tmp_path / "r")
    found = arms.pairs(out, {}, {"adapter": "full"})
    assert {(p.key, p.baseline_key) for p in found} == {
        (f"lora{p}{s}", f"full{p}{s}") for p in (0.0, 1.0) for s in (0, 1)
    }
    assert {p.arm for p in found} == {"plw=0 adapter=lora", "plw=1 adapter=lora"}
    named = arms.pairs(out, {"seed": "1"}, {"adapter": "full", "plw": "0"})
    assert {p.baseline_key for p in named if p.key == "lora1.01"} == {"full0.01"}
    assert len(arms.pairs(out, {"adapter": "lora"}, {})) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--judge: say who judges"),
        (["--judge", "rule", "--base-url", "http://x"], "--base-url: --judge=rule takes none"),
        (["--judge", "m", "--timeout", "3"], "--timeout: belongs to --base-url"),
        (["--judge", "m", "--base-url", "ftp://x"], "must begin with http"),
        (["--judge", "m", "--base-url", "http://a:b@x"], "must hold no name, password"),
        (["--judge", "rule", "adaptor=lora"], "adaptor: no such factor. Did you mean 'adapter'?"),
        (["--judge", "rule", "--baseline", "adapter=mora"], "adapter=mora: no run has it"),
        (["--judge", "rule", "--tasks", "gsm8k"], "not in gsm8k"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(words, said, tmp_path, capsys):
    out = folder(tmp_path / "r")
    assert main(["judge", str(out), *words]) == 2
    assert said in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["results.parquet"]


def test_the_page_has_what_was_judged(tmp_path):
    assert section.section(tmp_path) is None
    (tmp_path / "judgments" / "one").mkdir(parents=True)
    table = pd.DataFrame({"arm": ["=lora"], "win_rate": [0.25]})
    write_csv(table, tmp_path / "judgments" / "one" / "win_rates.csv")
    (sheet,) = section.section(tmp_path).blocks
    assert sheet.table.frame.to_dict("list") == {"arm": ["=lora"], "win_rate": [0.25]}
