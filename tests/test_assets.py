"""The shipped weights are made again by `make assets`, with the commands that their cards name."""
import re, shlex
import pytest
from chapters import ROOT

RECIPE = [l.strip() for l in (ROOT/'Makefile').read_text().split('\nassets: $(STAMP)')[1].split('\n\n')[0].splitlines()[1:]]
CARDS = {p.parent.name: p.read_text() for p in sorted((ROOT/'assets').glob('*/README.md'))}

@pytest.mark.parametrize('name', CARDS)
def test_make_assets_gives_the_command_of_each_card(name):
    "A training that was stopped by the clock is repeated by its steps."
    card = CARDS[name]
    command = shlex.split(re.search(r'\bcommand(?:\*\*)?: `?([^`\n]+)', card)[1])
    if '--minutes' in command:
        at = command.index('--minutes')
        command[at:at + 2] = ['--steps', re.search(r'\bsteps(?:\*\*)?: (\d+)', card)[1]]
    assert command in [shlex.split(l.replace('$(BIN)/', ''), comments=True) for l in RECIPE], command

def test_make_assets_trains_although_the_weights_are_there():
    "`metrics` judges a network that is there, and the course model goes on in its working folder: both are removed first."
    for gone, user in (('assets/features', 'vap_diffusion.metrics'), ('runs/course', 'vap_diffusion.pipeline')):
        assert (min(i for i, l in enumerate(RECIPE) if l.startswith('rm -rf') and gone in l.split())
                < min(i for i, l in enumerate(RECIPE) if user in l))

def test_make_assets_says_how_long():
    hours = sum(int(re.search(r'\bseconds(?:\*\*)?: (\d+)', card)[1]) for card in CARDS.values())/3600
    assert round(hours) == 3 and 'three hours' in (ROOT/'Makefile').read_text()
