"""Processes that answer once and then hang or die; a module that a fresh process imports in no time."""

import sys
import time


def answer_and_hang(answers):
    answers.send("one")
    time.sleep(600)


def answer_and_die(answers):
    answers.send("one")
    sys.exit(7)
