"""Banks from elsewhere: files of other versions and of other hands, other models' descriptions, groups, free text,
and the command that takes them."""
import json
from collections import Counter
from itertools import combinations
import numpy as np, pandas as pd, pytest, torch
from typer.testing import CliRunner
from vap_diffusion.cli import app
from vap_diffusion.datasets import load_table, prepare
from vap_diffusion.phantoms import CLASSES, asset_path, describe_attributes, make_phantom
from vap_diffusion.pipeline import bank_of, load_pipeline, plan_samples, sample
from vap_diffusion.prompt_bank import (DIAGNOSES, PromptBank, bank_report, class_names, clauses, extremes, mix_clauses,
                                       parse_prompts, possible, prompt_distances)
from vap_diffusion.vaps import describe_table, pattern_of
from conftest import message

SMALL = PromptBank({'nevus': {'Round, brown.': 3, 'Oval, tan.': 1}, 'melanoma': ['Black; irregular.'], 'keratosis': []}, 'a test',
                   PromptBank({'nevus': ['Oval, brown.'], 'melanoma': []}, 'held'), {'nevus': 2})

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def phantom_descriptions(n, modality='dermoscopy', seed=0):
    phantoms = [make_phantom(CLASSES[modality][i % 3], seed + i, 16) for i in range(n)]
    return pd.DataFrame(dict(file_name=[f'{i}.png' for i in range(n)], label=[p.label for p in phantoms],
                             t_mix=[describe_attributes(modality, p.attributes) for p in phantoms]))

# --- files -----------------------------------------------------------------------------------------------------------

def test_the_file_keeps_everything(tmp_path):
    back = PromptBank.load(SMALL.save(tmp_path))
    assert (back == SMALL and back.source == 'a test' and back.failed == {'nevus': 2} and back.held_out == SMALL.held_out
            and back.held_out.source == 'held')
    assert json.loads((tmp_path/'prompt_bank.json').read_text())['version'] == 2
    assert PromptBank.load(PromptBank({'a': ['x']}).save(tmp_path/'b.json')).held_out is None

def test_version_1(tmp_path):
    (tmp_path/'old.json').write_text(json.dumps(dict(version=1, source='old', prompts=dict(a=['x', 'y', 'x'], b=[]))))
    old = PromptBank.load(tmp_path/'old.json')
    assert old.prompts == {'a': {'x': 2, 'y': 1}, 'b': {}} and len(old) == 3 and old.source == 'old'

def test_the_shipped_bank_loads():
    data = json.loads(asset_path('course', 'prompt_bank.json').read_text())
    bank = PromptBank.load(asset_path('course'))
    assert len(bank) == sum(sum(p.values()) if isinstance(p, dict) else len(p) for p in data['prompts'].values()) > 1000

@pytest.mark.parametrize('text, says', [
    ('{', 'not JSON'), ('[]', 'version 1 or 2'), ('{"version": 3, "prompts": {}}', 'update'),
    ('{"version": 2}', "'prompts'"), ('{"version": "2", "prompts": {}}', 'version 1 or 2'),
    ('{"version": 2, "prompts": {"a": {"x": 0}}}', "'a'"), ('{"version": 2, "prompts": {"a": {"x": true}}}', "'a'"),
    ('{"version": 2, "prompts": {"a": "x"}}', "'a'"), ('{"version": 2, "prompts": {"a": [["x"]]}}', "'a'"),
    ('{"version": 2, "prompts": {}, "held_out": {"a": 1}}', 'prompts')])
def test_damaged_files(tmp_path, text, says):
    (tmp_path/'bank.json').write_text(text)
    found = message(ValueError, lambda: PromptBank.load(tmp_path/'bank.json'))
    assert says in found and str(tmp_path/'bank.json') in found

def test_csv_round_trip(tmp_path):
    odd = PromptBank({'a': {'"Quoted", with; marks\tand caf\u00e9': 2, '=SUM(A1)': 1}, 'b c': ['x'], 'none': []})
    assert PromptBank.load(odd.save(tmp_path/'bank.csv')) == odd
    assert list(pd.read_csv(tmp_path/'bank.csv')) == ['label', 'prompt', 'count']

@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_csv_of_other_hands(tmp_path, separator):
    lines = [['Label', 'note', 'Prompt', 'Count'], ['a', '', '"x, y; z"', '2'], ['a', 'hm', '"x, y; z"', ''],
             ['a', '', 'gone', '0'], ['b', '', '', ''], ['', '', '', '']]
    (tmp_path/'bank.csv').write_bytes(('\r\n'.join(separator.join(l) for l in lines)).encode())
    assert PromptBank.load(tmp_path/'bank.csv').prompts == {'a': {'x, y; z': 3}, 'b': {}}

@pytest.mark.parametrize('line, says', [
    ('a,x,many', "line 3: count is 'many'"), ('a,x,-1', 'line 3: count'), ('a,x,1.5', 'line 3: count'),
    ('a,,2', 'line 3: the prompt is blank'), (',x,1', 'line 3: no label'), ('a,x, y,1', 'line 3: more cells')])
def test_csv_mistakes(tmp_path, line, says):
    (tmp_path/'bank.csv').write_text('label,prompt,count\na,fine,1\n' + line + '\n')
    assert says in message(ValueError, lambda: PromptBank.load(tmp_path/'bank.csv'))

def test_csv_of_another_kind(tmp_path):
    (tmp_path/'bank.csv').write_text('class,text\n')
    assert 'label, prompt and count are needed' in message(ValueError, lambda: PromptBank.load(tmp_path/'bank.csv'))
    (tmp_path/'bank.csv').write_bytes(b'label,prompt\na,caf\xe9\n')
    assert 'UTF-8' in message(ValueError, lambda: PromptBank.load(tmp_path/'bank.csv'))
    (tmp_path/'bank.csv').write_text('')
    assert 'nothing' in message(ValueError, lambda: PromptBank.load(tmp_path/'bank.csv'))

# --- draws, names ----------------------------------------------------------------------------------------------------

def test_draws_follow_the_counts():
    words = list('abcdefgh'); counts = dict(zip(words, (1, 2, 3, 4, 5, 6, 7, 8)))
    listed = PromptBank({'c': [w for w, n in counts.items() for _ in range(n)]})
    assert listed == PromptBank({'c': counts}) and listed['c'] == [w for w, n in counts.items() for _ in range(n)]
    drawn = Counter(listed.draw('c', 36_000, seeded()))
    assert all(abs(drawn[w]/1000 - n) < .25 for w, n in counts.items())     # sd of the rarest: 0.03, of the commonest 0.08

def test_renamed_keeps_what_belongs_to_it():
    new = SMALL.renamed({'nevus': 'mole', 'melanoma': 'mole', 'keratosis': None})
    assert (new.prompts == {'mole': {'Round, brown.': 3, 'Oval, tan.': 1, 'Black; irregular.': 1}}
            and new.failed == {'mole': 2} and new.held_out.prompts == {'mole': {'Oval, brown.': 1}})

def test_swap_says_what_it_leaves_out():
    with pytest.warns(UserWarning, match='left out: polyp'):
        mine = SMALL.swap(PromptBank({'keratosis': ['k'], 'polyp': ['p'], 'melanoma': ['m'], 'nevus': ['n']}))
    assert mine.labels == SMALL.labels and mine['keratosis'] == ['k']
    assert 'renamed' in message(ValueError, lambda: SMALL.swap(PromptBank({'NV': ['n']})))

# --- what is held out ------------------------------------------------------------------------------------------------

def rows(**columns): return pd.DataFrame(dict(file_name=[f'{i}.png' for i in range(len(columns['t_mix']))], **columns))

def test_no_group_is_on_both_sides():
    table = rows(label=['a']*6, t_mix=['one', 'two', 'three', 'four', 'one', 'six'], group=[1, 1, 2, 1, 3, 4],
                 split=['train', 'train', 'train', 'val', 'val', 'val'])
    with pytest.warns(UserWarning, match='1 of 3 held-out images belong to a lesion or patient'):
        bank = PromptBank.from_descriptions(table)
    assert bank.held_out.prompts == {'a': {'six': 1}}                       # 'four' shows a training lesion, 'one' is said of one
    assert '1 of 2, the others are in training word for word' in bank.held_out.source
    assert PromptBank.from_descriptions(table, held_out=None).held_out is None and PromptBank.from_descriptions(table[:3]).held_out is None

@pytest.mark.parametrize('seed', range(5))
def test_a_share_is_held_back_by_group(seed):
    table = rows(label=['a', 'b']*100, t_mix=[f'text {i}' for i in range(200)], group=np.arange(200)//10, split=['train']*200)
    bank = PromptBank.from_descriptions(table, held_out=.2, seed=seed)
    group = dict(zip(table.t_mix, table['group']))
    sides = [{group[p] for c in 'ab' for p in b[c]} for b in (bank, bank.held_out)]
    assert not sides[0] & sides[1] and len(bank) + len(bank.held_out) == 200 and .1 <= len(bank.held_out)/200 <= .3

def test_blank_descriptions_are_counted():
    table = rows(label=['a', 'a', 'a', 'b'], t_mix=['one', ' ', None, 'two'], split=['train']*4)
    with pytest.warns(UserWarning, match='2 of 4'): bank = PromptBank.from_descriptions(table)
    assert bank.failed == {'a': 2} and abs(bank_report(bank).failed['a'] - 2/3) < 1e-9 and bank_report(bank).failed['b'] == 0

def test_the_stage(tmp_path):
    "prepare cuts the validation split by group; the bank of its folder holds these out, and loads from descriptions.jsonl as well."
    prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=60, size=64, progress=False, modality='dermoscopy')
    said = describe_table(tmp_path/'w', progress=False).set_index('file_name').t_mix
    table, bank = load_table(tmp_path/'w'), PromptBank.load(tmp_path/'w'/'descriptions.jsonl')
    assert len(bank) == (table.split == 'train').sum() and bank == PromptBank.from_descriptions(tmp_path/'w')
    held = {p for c in bank.labels for p in bank.held_out[c]}
    assert (held <= set(said[table[table.split == 'val'].file_name])
            and not held & set(said[table[table.split == 'train'].file_name]) and held)

def test_descriptions_of_another_model(tmp_path):
    "With the table beside them, those of the training images; without it all, which is said; whatever the file is called."
    prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=30, size=64, progress=False, modality='dermoscopy')
    table, lines = load_table(tmp_path/'w'), []
    for i, (f, l) in enumerate(zip(table.file_name, table.label)):
        lines += [json.dumps(dict(file_name=f, label=l, t1='', t2='', t_mix=t, model='llava', prompt_version='1'))
                  for t in (f'draft {i}', f'said {i}')]
    (tmp_path/'w'/'llava.jsonl').write_text('\n'.join(lines) + '\n{"file_')     # a line that a stop tore
    bank = PromptBank.load(tmp_path/'w'/'llava.jsonl')
    assert (sorted(p for c in bank.labels for p in bank[c])
            == sorted(f'said {i}' for i, s in enumerate(table.split) if s == 'train')
            and bank.source == 'w/llava.jsonl train llava')
    (tmp_path/'alone.jsonl').write_text((tmp_path/'w'/'llava.jsonl').read_text())
    with pytest.warns(UserWarning, match='all 30 descriptions'):
        assert len(PromptBank.load(tmp_path/'alone.jsonl')) == 30
    assert 'no prompt bank here' in message(FileNotFoundError, lambda: PromptBank.load(tmp_path/'missing.jsonl'))

# --- what no image had -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('modality', CLASSES)
def test_recombined_attributes(modality):
    bank = PromptBank.from_descriptions(phantom_descriptions(240, modality), split=None)
    for label in bank.labels:
        known = parse_prompts(list(bank.prompts[label]))[1]
        for pair in (False, True):
            new = bank.unseen(label, 20, seeded(), pair)
            made = parse_prompts(new)[1]
            assert (len(set(new)) == 20 and not set(new) & {p for c in bank.labels for p in bank[c]}
                    and all(possible(modality, m) for m in made))
            assert all(any(all(m[k] in (a[k], b[k]) for k in m) for a, b in combinations(known, 2)) for m in made)
            seen = {t for a in known for t in combinations(a.items(), 2)}
            if pair: assert all(set(combinations(m.items(), 2)) - seen for m in made)
        assert bank.unseen(label, 5, seeded(3)) == bank.unseen(label, 5, seeded(3)) != bank.unseen(label, 5, seeded(4))

def test_chapter_02_only_draws_what_is_possible():
    assert all(possible(m, make_phantom(CLASSES[m][i % 3], i, 16).attributes) for m in CLASSES for i in range(600))

def test_recombined_clauses_come_from_two_texts():
    texts = ['Round lesion, sharp border; pale skin.', 'Oval lesion, soft border; pink skin.',
             'A red lesion. The skin around it is tan.', 'Flat, scaly, gray.']
    bank, known = PromptBank({'a': texts}), [{c.strip().lower() for c in clauses(t)[0]} for t in texts]
    new = bank.unseen('a', 12, seeded())
    assert not set(new) & set(texts)
    for t in new:
        assert any({c.strip().lower() for c in clauses(t)[0]} <= known[i] | known[j]
                   for i, j in combinations(range(4), 2)), t
    for t in bank.unseen('a', 5, seeded(), pair=True):
        assert any(not any(set(p) <= k for k in known)
                   for p in combinations({c.strip().lower() for c in clauses(t)[0]}, 2))

def test_texts_with_nothing_in_common_are_not_forced():
    assert mix_clauses('Round lesion.', 'Pale skin, many hairs.', lambda k: range(k)) is None
    assert 'only 0 of 1' in message(
        ValueError, lambda: PromptBank({'a': ['Round lesion.', 'Pale skin, many hairs.']}).unseen('a', 1, seeded()))

def test_a_large_bank_is_fast():
    import time
    texts = {f'Lesion {i % 97}, border {i % 89}, skin {i % 83}.': 1 + i % 3 for i in range(20_000)}
    bank, start = PromptBank({'a': texts}), time.time()
    assert len(bank.draw('a', 50_000, seeded())) == 50_000 and len(bank.unseen('a', 500, seeded())) == 500
    assert time.time() - start < 20

# --- pictures and reports --------------------------------------------------------------------------------------------

def test_extremes():
    bank = PromptBank({'a': {'round brown lesion': 5, 'round tan lesion': 1, 'blue square': 1}})
    found = extremes(bank).set_index('kind')
    assert found.prompt.nearest == 'round brown lesion' and found.prompt.farthest == 'blue square'
    assert abs(found.distance.nearest - (.5 + 1)/7) < 1e-6                  # itself five times, one of four words twice apart, one apart

def test_distances_of_nothing_and_of_the_same():
    d = prompt_distances(['the', 'round lesion'], ['of a', 'Round lesion!'])
    assert d[0, 0] == 0 and d[1, 1] == 0 and d[0, 1] == d[1, 0] == 1

@pytest.mark.parametrize('rate', [0, .05, .2, .4])
def test_planted_names_come_back(rate):
    table = phantom_descriptions(300)
    named = [f'{t} Typical of {rng.choice(["melanoma", "a Melanoma", "MELANOMAS"])}.'
             if l == 'melanoma' and rng.random() < rate else t
             for rng in [np.random.default_rng(0)] for l, t in zip(table.label, table.t_mix)]
    planted = np.mean([a != b for a, b, l in zip(named, table.t_mix, table.label) if l == 'melanoma'])
    report = bank_report(PromptBank.from_descriptions(table.assign(t_mix=named), split=None))
    assert (report['names its class'].melanoma == report['names a diagnosis'].melanoma
            == report['another names it'].max() + planted == planted)

def test_words_that_all_use_tell_nothing():
    report = bank_report(PromptBank({'clear lungs': ['Clear lungs.', 'hazy'],
                                     'mass': ['clear lungs', 'clear lungs', 'clear', 'lungs'], 'effusion': ['hazy']}))
    assert (report['names its class'].tolist() == [.5, 0, 0] and report['another names it'].tolist() == [.5, 0, 0]
            and report['names a diagnosis'].tolist() == [0, 0, 0])

def test_the_list_of_diagnoses():
    for label in DIAGNOSES: assert class_names(label), label
    for label, said, not_said in (
            ('MEL', 'A melanoma.', 'A melody.'), ('NV', 'Two nevi', 'an even border'),
            ('AKIEC', "Bowen's disease", 'bow'), ('BKL', 'seborrheic-keratosis', 'a kernel'),
            ('Pleural_Thickening', 'pleural thickening', 'thick'), ('basal_cell', 'Basal cell', 'basal'),
            ('no finding', 'nothing', 'no finding'), ('normal', 'x', 'normal light')):
        pattern = pattern_of(class_names(label))
        assert bool(pattern.search(said)) == (label not in ('no finding', 'normal')) and not pattern.search(not_said), label

# --- the generator's side --------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def pipe(): return load_pipeline('course')

def with_bank(pipe, bank): pipe.prompt_bank = bank; return pipe

def test_held_out_prompts(pipe):
    kept = pipe.prompt_bank
    try:
        held = PromptBank(kept.prompts, held_out=PromptBank({c: [f'a {c}'] for c in pipe.class_names}))
        assert plan_samples(with_bank(pipe, held), 6, prompts='heldout').prompt.tolist() == [f'a {c}' for c in pipe.class_names]*2
        for bank in (PromptBank(kept.prompts), PromptBank(kept.prompts, held_out=PromptBank({c: [] for c in pipe.class_names}))):
            assert 'validation split' in message(ValueError, lambda: plan_samples(with_bank(pipe, bank), 3, prompts='heldout'))
        assert 'no prompt bank' in message(ValueError, lambda: plan_samples(with_bank(pipe, None), 3))
    finally: pipe.prompt_bank = kept

def test_the_file_of_a_bank(pipe, tmp_path):
    mine = PromptBank({c: [f'my {c}'] for c in pipe.class_names})
    for file in (mine.save(tmp_path/'mine.csv'), mine.save(tmp_path/'mine.json'), tmp_path/'mine.json'):
        assert plan_samples(pipe, 3, prompts=str(file)).prompt.tolist() == [f'my {c}' for c in pipe.class_names]
    one = PromptBank({'nevus': ['mine']}).save(tmp_path/'one.csv')           # enough for one class
    assert plan_samples(pipe, 2, label='nevus', prompts=str(one)).prompt.tolist() == ['mine']*2
    assert "unknown class 'keratosis'" in message(ValueError, lambda: plan_samples(pipe, 3, prompts=str(one)))
    assert 'bank, own, unseen, heldout, or the file of a bank' in message(
        ValueError, lambda: plan_samples(pipe, 3, prompts=str(tmp_path/'nothing.csv')))
    assert bank_of(pipe, 'unseen') is pipe.prompt_bank

def test_a_file_that_changes_between_two_calls(pipe, tmp_path):
    "Images of two texts do not come to lie in one folder."
    call = lambda: sample(pipe, tmp_path/'s', 2, label='nevus', prompts=str(tmp_path/'b.csv'), num_inference_steps=1,
                          progress=False)
    PromptBank({'nevus': ['Round brown lesion.']}).save(tmp_path/'b.csv'); call(); call()
    PromptBank({'nevus': ['Oval black lesion.']}).save(tmp_path/'b.csv')
    assert 'another run' in message(FileExistsError, call)

def test_the_command(tmp_path):
    PromptBank({c: [f'Round brown lesion, {c}.'] for c in CLASSES['dermoscopy']}).save(tmp_path/'mine.csv')
    done = CliRunner().invoke(app, ['sample', 'course', '--out', str(tmp_path/'s'), '--n', '3', '--steps', '1',
                                    '--prompts', str(tmp_path/'mine.csv')])
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(tmp_path/'s'/'manifest.csv').prompt) == {f'Round brown lesion, {c}.' for c in CLASSES['dermoscopy']}

def test_a_class_that_the_table_does_not_have_is_named(tmp_path):
    table = pd.DataFrame(dict(file_name=['1', '2'], split='train', group=['1', '2'])); table.attrs['classes'] = ['nevus']
    words = pd.DataFrame(dict(file_name=['1', '2'], label=['nevus', 'mel'], t_mix=['Round.', 'Black.']))
    with pytest.raises(ValueError, match="class 'mel' is not in the table, which has nevus"):
        PromptBank.from_descriptions(words, 'train', table)

def test_nothing_to_measure():
    assert prompt_distances([], ['x']).shape == (0, 1) and prompt_distances(['x'], []).shape == (1, 0)
    with pytest.raises(ValueError, match='no class'): bank_report(PromptBank({}))
