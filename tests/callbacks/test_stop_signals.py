import os
import signal
import threading

import pytest

from callbacks.stop_signals import SIGNALS, StopSignals


@pytest.fixture(autouse=True)
def before():
    """The handlers that the test finds, and leaves."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield handlers
    for number, handler in handlers.items():
        signal.signal(number, handler)


def handlers():
    return {number: signal.getsignal(number) for number in SIGNALS}


def test_nothing_is_touched_until_it_is_installed(before):
    signals = StopSignals()
    signals.restore()
    assert handlers() == before
    assert signals.received == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_process_goes_on(number, before):
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), number)
    assert signals.received == number
    assert signals.exit_code == 128 + number
    signals.restore()
    assert handlers() == before


@pytest.mark.parametrize("first", SIGNALS)
def test_a_sigterm_that_is_passed_on_is_no_second_signal_and_ctrl_c_is(first):
    signals = StopSignals()
    signals.install(relayed=True)
    os.kill(os.getpid(), first)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == first
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_otherwise_any_second_signal_takes_effect(number):
    StopSignals().install()
    os.kill(os.getpid(), number)
    assert set(handlers().values()) == {signal.SIG_DFL}


def test_the_handlers_are_put_back_and_may_be_replaced_again(before):
    signals = StopSignals()
    for _ in range(2):
        signals.install()
        assert all(handlers()[number] != before[number] for number in SIGNALS)
        signals.restore()
        signals.restore()
        assert handlers() == before


def test_another_thread_leaves_the_handlers_alone(before):
    signals, seen = StopSignals(), []

    def install():
        signals.install()
        seen.append(handlers())

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    signals.restore()
    assert seen == [before]
    assert handlers() == before


def test_without_a_signal_the_exit_code_is_that_of_sigterm():
    """Another process of the run was told."""
    assert StopSignals().exit_code == 143
