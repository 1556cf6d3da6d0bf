"""Probes in processes of their own: what they answer, how they end, what they leave behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from probe_kit import TOKEN

import memweir as mw
from flight_kit import until
from memweir.probes import ProbeCache, ProcessOutcome, process_probe, run_probe_process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sessions and pipes of POSIX")
CHILD = [sys.executable, "-m", "memweir.probes_child"]
LONG = 120.0  # seconds that nothing here takes


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def child(name, stdin_json=None, **options):
    options.setdefault("deadline", LONG)
    return run_probe_process([*CHILD, f"process_kit:{name}"], stdin_json=stdin_json, **options)


def script(code, **options):
    options.setdefault("deadline", LONG)
    return run_probe_process([sys.executable, "-c", code], **options)


def test_a_child_answers_what_it_was_asked():
    asked = {"subject": "Org/Modèle", "revision": None, "depth": [1, {"x": 2.5}]}
    outcome = child("answer", asked)
    assert outcome.ok, outcome
    assert outcome.value == asked
    assert (outcome.returncode, outcome.unwrap()) == (0, asked)
    assert child("answer_later", {"subject": "later"}).value == "later"
    assert child("Nested.yes").value is True
    assert child("answer", {"subject": "x" * 300_000}).value["subject"] == "x" * 300_000


@pytest.mark.parametrize(
    ("name", "kind", "status", "retry_after"),
    [
        ("unknown", "undecided", None, None),
        ("nothing", "bug", None, None),
        ("not_json", "bug", None, None),
        ("bug", "bug", None, None),
        ("denied", "denied", None, None),
        ("limited", "transient", 429, 30.0),
        ("no_such_function", "bug", None, None),
    ],
)
def test_a_failure_is_told_in_structure(name, kind, status, retry_after):
    outcome = child(name)
    assert not outcome.ok
    assert (outcome.kind, outcome.status, outcome.retry_after) == (kind, status, retry_after)
    with pytest.raises(mw.ProbeFailed) as caught:
        outcome.unwrap()
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('{"ok": true', "NotJson"),
        ("", "NotJson"),
        ("true", "NotAnAnswer"),
        ("[]", "NotAnAnswer"),
        ('{"ok": null}', "NotAnAnswer"),
        ('{"ok": true, "error": {}}', None),
        ('{"error": "denied"}', "NotAnAnswer"),
        ('{"error": {"kind": "known"}}', None),
        ('{"error": {"kind": ["denied"], "status": "403", "type": 5, "retry_after": "x"}}', None),
        ("[" * 100_000, "NotJson"),
        ("404 Not Found: denied, absent", "NotJson"),
    ],
)
def test_text_never_decides(said, error):
    outcome = script(f"print({said!r})")
    assert (outcome.ok, outcome.kind, outcome.error) == (False, "transient", error)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "code"),
    [
        ("die", {"number": signal.SIGKILL}, "Signal9", -9),
        ("die", {"number": signal.SIGSEGV}, "Signal11", -11),
        ("leave", {"code": 3}, "Exit3", 3),
        ("leave", {"code": 0}, "NotJson", 0),
    ],
)
def test_how_a_child_ended_is_no_answer(name, arguments, error, code):
    outcome = child(name, arguments)
    assert (outcome.ok, outcome.kind, outcome.error) == (False, "transient", error)
    assert outcome.returncode == code


def test_an_exit_status_outweighs_what_was_said():
    outcome = script("import sys; print('{\"ok\": true}'); sys.exit(1)")
    assert (outcome.ok, outcome.kind, outcome.error) == (False, "transient", "Exit1")


def test_a_crash_after_the_answer_changes_nothing():
    assert child("crash_late").value is True


def test_what_libraries_print_is_not_the_answer():
    outcome = child("noise")
    assert outcome.value is True
    assert "noisenoise" in outcome.stderr
    assert "another lie" in outcome.stderr


def test_only_the_last_of_standard_error_is_kept():
    outcome = child("last_words")
    assert outcome.ok
    assert len(outcome.stderr) <= 8192
    assert outcome.stderr.endswith("line 19999\n")


def test_too_much_output_ends_the_child():
    began = time.monotonic()
    outcome = script("while True: print('x' * 65536)", max_output=1 << 20)
    assert (outcome.kind, outcome.error) == ("transient", "OutputTooLarge")
    assert outcome.returncode == -signal.SIGKILL
    assert time.monotonic() - began < LONG / 2  # it did not wait for the deadline


def test_a_child_that_does_not_listen_is_heard_all_the_same():
    code = "import os; os.close(0); print('{\"ok\": 1}')"
    assert script(code, stdin_json="x" * 1_000_000).value == 1


@pytest.mark.parametrize("then", ["wait", "answer"])
@pytest.mark.parametrize("pidfd", [True, False])
def test_the_whole_session_ends_with_the_child(tmp_path, then, pidfd, monkeypatch):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    pids = tmp_path / "pids"
    deadline = 5.0 if then == "wait" else LONG
    outcome = child("children", {"pids": str(pids), "then": then}, deadline=deadline)
    if then == "wait" and not pids.exists():
        pytest.skip("the child did not get so far within 5 s on this machine")
    assert outcome.kind == "timeout" if then == "wait" else outcome.value is True
    for pid in map(int, pids.read_text().split()):
        until(lambda pid=pid: ended(pid))


def ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_deadline_ends_a_child_that_ignores_signals():
    ignoring = "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]"
    outcome = script(f"import signal, time; {ignoring}; time.sleep(3600)", deadline=1.0)
    assert (outcome.kind, outcome.returncode) == ("timeout", -signal.SIGKILL)


def test_a_child_whose_parent_dies_ends_by_itself():
    request = json.dumps({"input": {}, "secrets": {}, "deadline": 0.2})
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [*CHILD, "process_kit:wait"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_CLOSE, write)],
    )
    os.close(read)
    os.write(write, request.encode())
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_what_cannot_be_started_is_no_answer():
    outcome = run_probe_process(["/no/such/program"], deadline=LONG)
    assert (outcome.ok, outcome.kind, outcome.error) == (False, "transient", "FileNotFoundError")


def test_arguments_are_checked():
    for argv in (["a\x00b"], ["x" * 200_000]):
        with pytest.raises(mw.IdentifierError):
            run_probe_process(argv)
    with pytest.raises(TypeError):
        run_probe_process("python -c 1")
    with pytest.raises(ValueError, match="deadline"):
        run_probe_process(["true"], deadline=0)
    with pytest.raises(ValueError, match="secret"):
        run_probe_process(["x", f"--token={TOKEN[:20]}"], secrets={"token": TOKEN[:20]})
    with pytest.raises(TypeError):
        run_probe_process(["true"], stdin_json=object())


def test_a_childs_environment_has_no_token_of_anybody(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-no-known-shape")
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    monkeypatch.setenv("HARMLESS", "kept")
    code = "import json, os; print(json.dumps({'ok': dict(os.environ)}))"
    seen = script(code, secrets={"token": "horse"}).value
    assert seen["HARMLESS"] == "kept"
    assert "HF_TOKEN" not in seen
    assert "MY_TOKEN" not in seen
    assert script(code, env={"A": "1"}).value["A"] == "1"


def test_descriptors_and_processes_are_given_back():
    # In a process of its own: what other tests left behind may go away at any moment.
    code = """
import os
from test_probes_process import script
script("print('{\\"ok\\": 1}')")
before = os.listdir("/proc/self/fd")
for _ in range(5):
    script("print('{\\"ok\\": 1}')")
    script("import time; time.sleep(60)", deadline=0.1)
assert os.listdir("/proc/self/fd") == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none left")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("none left\n", "")


def test_a_process_is_a_probe():
    ask = ProbeCache(process_probe("process_kit:answer", deadline=LONG), deadline=LONG)
    verdict = ask.get("model", token="not of a known shape", revision="main")
    assert verdict.value == {"subject": "model", "revision": "main", "token": "[redacted]"}
    assert ask.get("model", token=mw.ANONYMOUS).value == {"subject": "model", "token": False}
    denied = ProbeCache(
        process_probe("process_kit:denied", deadline=LONG), auth=False, deadline=LONG
    )
    assert denied.get("model").reason == mw.Reason("denied", "OSError")
    assert denied.get("model").source == "cache"


def test_an_outcome_says_what_it_is():
    assert ProcessOutcome(True, 7).unwrap() == 7
    with pytest.raises(mw.ProbeFailed, match="absent"):
        ProcessOutcome(False, kind="absent").unwrap()


ECHO = "import json, sys; secret = json.loads(sys.stdin.readline())['secrets']['t']; "
SECRET = "correct-horse-battery"


def test_a_secret_is_hidden_before_anything_is_cut_off():
    # The window of stderr begins in the middle of one, and the error's name ends in one.
    code = ECHO + (
        "sys.stderr.write('x' * 3000 + secret + 'y' * (8192 - 10)); "
        "print(json.dumps({'error': {'kind': 'denied', 'type': 'z' * 70 + secret}}))"
    )
    outcome = script(code, secrets={"t": SECRET})
    assert outcome.kind == "denied"
    assert len(outcome.stderr) == 8192
    for part in (SECRET[:6], SECRET[-6:]):
        assert part not in outcome.stderr + outcome.error


def test_an_error_is_told_as_one_line_and_numbers_as_what_they_can_be():
    said = {"kind": "transient", "type": "a\nINFO all is well" + "x" * 999, "status": 10**9}
    for seconds in (10**400, -1, float("nan"), float("inf"), True, "7", [7]):
        outcome = script(f"print({json.dumps({'error': {**said, 'retry_after': seconds}})!r})")
        assert outcome.status is None
        assert outcome.retry_after == (1.0 if seconds is True else None)
        assert "\n" not in outcome.error
        assert len(outcome.error) < 100


@pytest.mark.parametrize("depth", [300, 600, 900, 5000])
def test_an_answer_however_deep_raises_nothing(depth):
    outcome = script(
        f"print('{{\"ok\": ' + '[' * {depth} + ']' * {depth} + '}}')", secrets={"t": SECRET}
    )
    assert outcome.ok or outcome.error == "NotJson"


@pytest.mark.parametrize("deadline", [float("inf"), float("nan"), -1.0])
def test_a_deadline_that_is_no_time_is_refused(deadline):
    with pytest.raises(ValueError, match="deadline"):
        script("print(1)", deadline=deadline)
    assert script("print('{\"ok\": 1}')", deadline=1e12).value == 1


def test_a_child_does_not_wait_for_whoever_inherited_its_pipe(monkeypatch):
    others = []

    class Inherited(subprocess.Popen):
        """As if another thread forked just now."""

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            others.append(os.dup(self.stdin.fileno()))

    monkeypatch.setattr(subprocess, "Popen", Inherited)
    try:
        assert child("answer", {"subject": "model"}, deadline=60).value == {"subject": "model"}
    finally:
        for each in others:
            os.close(each)


def test_one_that_goes_on_writing_does_not_outlive_the_answer():
    code = (
        "import subprocess; p = subprocess.Popen(['yes'], stdout=2); print('{\"ok\": %d}' % p.pid)"
    )
    outcome = script(code)
    assert outcome.ok
    until(lambda: ended(outcome.value))


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip(), done.stderr


def test_an_answer_counts_where_somebody_else_reaps_the_child():
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from test_probes_process import script\n"
        "print(script('import json; print(json.dumps(dict(ok=7)))').value)\n"
    )
    assert run_python(code) == ("7", "")


@pytest.mark.parametrize("forks", [False, True])
def test_no_child_outlives_the_interpreter_unless_it_is_that_of_a_parent(forks):
    # The thread that talks to it is a daemon, as those of probes are.
    code = (
        "import os, sys, threading, time\n"
        "from test_probes_process import script\n"
        "from memweir.probes import process\n"
        "talk = lambda: script('import time; time.sleep(3600)')\n"
        "threading.Thread(target=talk, daemon=True).start()\n"
        "while not process._running: time.sleep(0.01)\n"
        "(pid,) = process._running\n"
        f"if {forks}:\n"
        "    forked = os.fork()\n"
        "    if forked == 0: sys.exit()\n"
        "    os.waitpid(forked, 0)\n"
        "    os.kill(pid, 0)\n"
        "    assert open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] != 'Z'\n"
        "print(pid)\n"
    )
    out, err = run_python(code)
    assert err == ""
    until(lambda: ended(int(out)))


def test_a_child_that_cannot_be_started_for_want_of_means_is_exhaustion(monkeypatch):
    def full(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", full)
    outcome = script("print(1)")
    assert (outcome.ok, outcome.kind, outcome.error) == (False, "exhausted", "OSError")
