"""Faults of the reader, the report and the filter: odd texts, damaged files, wrong words on the command line;
nothing of a model's own words is lost."""
import json, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, tiny
from filelock import FileLock
import vap_diffusion.faithfulness as faithfulness, vap_diffusion.vaps as vaps
from vap_diffusion.datasets import load_image, load_table, prepare, write_table
from vap_diffusion.faithfulness import (KINDS, ask_again, can_plant, consistency, draw_truth, errors_by_eye,
                                        faithfulness_report, judge, lesion_agreement, main, measured, plant_errors,
                                        prove, read_claims, recover, report_table, reword, say, score_claims, seen_by_eye,
                                        shuffled_bank, spoken, trusted, verify, verify_table, wilson)
from vap_diffusion.phantoms import ATTRIBUTES, CLASSES, describe_attributes, draw_attributes
from vap_diffusion.vaps import MeasuringDescriber, describe_table, load_descriptions, read_lines
from conftest import message

SENTENCES = Path(__file__).parent/'claims_development.jsonl'
TRUTH = {m: [draw_attributes(CLASSES[m][i % 3], np.random.default_rng(i)) for i in range(150)] for m in ATTRIBUTES}
each_modality = pytest.mark.parametrize('modality', ATTRIBUTES)

# --- reading ---------------------------------------------------------------------------------------------------------

@each_modality
def test_the_sentences_that_the_reader_was_written_on(modality):
    table = score_claims(SENTENCES, modality).set_index('attribute')
    assert table.sentences['all'] > 60 and table.exact['all'] > .97, 'a rule was lost'
    assert set(table.index) == {*ATTRIBUTES[modality], 'all'} and (table.drop('all').labelled > 0).all(), (
        'an attribute that no sentence speaks of')

@each_modality
def test_other_words_say_the_same(modality):
    rng = np.random.default_rng(0)
    for t in TRUTH[modality]:
        says = spoken(modality, t)
        assert read_claims(reword(modality, says, rng), modality) == {a: [says[a]] for a in t if a in says}

@pytest.mark.parametrize('text', ['', '   ', '?', '🙂 皮肤 病变', 'none', ','*3000, 'a'*5000, 'Lorem ipsum '*300,
                                  '1/0 of the image', '0% of the image', '300 % of the image',
                                  'no no not without neither nor'])
def test_odd_texts_are_read_without_an_error_and_quickly(text):
    start = time.time()
    for m in ATTRIBUTES: assert not [a for a, v in read_claims(text, m).items() if a != 'size'], text[:40]
    assert time.time() - start < 5

def test_an_unknown_modality_is_named():
    assert 'ultrasound' in message(ValueError, lambda: read_claims('a lesion', 'ultrasound'))

def test_a_denial_is_the_opposite_of_a_claim():
    for text, denied in (('hairs are seen.', 'no hairs are seen.'), ('The corners are dark.', 'The corners are not dark.'),
                         ('The border is sharp.', 'The border is not sharp.')):
        assert read_claims(text) != read_claims(denied)
    assert (read_claims('There is a catheter.', 'chest_xray') == {'device': ['catheter']}
            and read_claims('There is no catheter.', 'chest_xray') == {}), 'wires may still be there'

def test_the_side_of_the_picture_is_not_that_of_the_patient():
    assert read_claims('Round opacity on the left of the image.', 'chest_xray')['side'] == ['right']
    assert read_claims('Round opacity on the left.', 'chest_xray')['side'] == ['left']

def test_labelled_sentences_outside_the_vocabulary_are_refused(tmp_path):
    path = tmp_path/'dermoscopy.jsonl'
    path.write_text(json.dumps(dict(text='A green lesion.', claims=dict(colour=['green']))) + '\n')
    assert 'line 1' in message(ValueError, lambda: score_claims(path)) and 'green' in message(ValueError, lambda: score_claims(path))
    path.write_text('\n')
    assert 'no sentence' in message(ValueError, lambda: score_claims(path))

def test_scores_count_what_is_wrong(tmp_path):
    path = tmp_path/'dermoscopy.jsonl'
    rows = [('A round lesion.', dict(shape=['round'])), ('A red lesion.', dict(colour=['pink'])),
            ('Soft border.', dict(border=['soft'], hair=['none']))]
    path.write_text(''.join(json.dumps(dict(text=t, claims=c)) + '\n' for t, c in rows))
    total = score_claims(path).set_index('attribute').loc['all']
    assert (total.claimed, total.labelled, total.right, total.sentences) == (3, 4, 2, 3) and total.exact == pytest.approx(1/3)

# --- outcomes --------------------------------------------------------------------------------------------------------

def test_every_outcome():
    truth = dict(TRUTH['chest_xray'][0], opacity='round', side='left', size='a tenth', device='none', marker='none', heart='large')
    found = judge(read_claims('Round opacity on the right. There is a catheter. No marker. The lungs are '
                              + truth['lungs'] + '.', 'chest_xray'), truth, 'chest_xray')
    assert ([found[a] for a in ('opacity', 'side', 'size', 'device', 'marker', 'lungs', 'heart')]
            == ['correct', 'contradicted', 'omitted', 'hallucinated', 'correct', 'correct', 'omitted'])
    assert (judge({'opacity': ['none']}, truth, 'chest_xray')['opacity'] == 'contradicted'
            and judge({}, truth, 'chest_xray')['device'] == 'absent')

@pytest.mark.parametrize('text, attribute, true', [
    ('White, blue-gray, red and pink areas.', 'second colour', 'white'),
    ('The lesion is round, oval or irregular.', 'shape', 'round'),
    ('The lesion is round. The lesion is irregular.', 'shape', 'round')])
def test_the_right_value_among_others_is_not_correct(text, attribute, true):
    claims, truth = read_claims(text), {attribute: true}
    assert true in claims[attribute] and judge(claims, truth, 'dermoscopy') == {attribute: 'extra'}
    report = faithfulness_report([claims], [truth], 'dermoscopy').set_index(['attribute', 'measure'])['count']
    assert report[attribute, 'extra'] == 1 and report[attribute, 'correct'] == report[attribute, 'contradicted'] == 0
    for mode in ('drop', 'repair'):
        assert read_claims(verify(text, truth, 'dermoscopy', mode)).get(attribute, [true]) == [true]
    assert read_claims(verify(text, truth, 'dermoscopy', 'repair')) == {attribute: [true]}

def test_a_corner_is_one_place_and_only_the_wrong_sentence_goes():
    assert judge({'position': ['left', 'top']}, {'position': 'top'}, 'dermoscopy') == {'position': 'correct'}
    assert judge({'position': ['left', 'right']}, {'position': 'left'}, 'dermoscopy') == {'position': 'extra'}
    assert (verify('The lesion is round. The skin is pale. The lesion is irregular.', {'shape': 'round'})
            == 'The lesion is round. The skin is pale.')

def test_rates_have_their_own_denominators():
    truth = [dict(hair='none', corners='dark'), dict(hair='few', corners='dark'), dict(hair='none', corners='none')]
    claims = [{'hair': ['many']}, {'hair': ['many'], 'corners': ['dark']}, {}]
    report = faithfulness_report(claims, truth, 'dermoscopy').set_index(['attribute', 'measure'])
    get = lambda a, m: tuple(report.loc[(a, m), ['count', 'n']])
    assert get('hair', 'hallucinated') == (1, 2) and get('hair', 'contradicted') == (1, 1) and get('hair', 'correct') == (0, 2)
    assert get('corners', 'omitted') == (1, 2) and get('corners', 'coverage') == (1, 2) and get('all', 'hallucinated') == (1, 3)
    assert report.low.between(0, 1).all() and (report.low <= report.high).all() and 'shape' not in report.index.get_level_values(0)
    assert 'one for each' in message(ValueError, lambda: faithfulness_report(claims[:1], truth, 'dermoscopy'))
    assert wilson(0, 0) == (0, 1)

def test_consistency_needs_two_answers():
    assert 'at least twice' in message(ValueError, lambda: consistency([['a round lesion']], 'dermoscopy'))
    table = consistency([['A round lesion.', 'A round lesion.', 'An oval lesion.']], 'dermoscopy').set_index('attribute')
    assert table.rate['shape'] == pytest.approx(1/3) and table.rate['hair'] == 1

# --- planting --------------------------------------------------------------------------------------------------------

@each_modality
@pytest.mark.parametrize('kind', KINDS)
def test_planted_errors_are_as_many_as_said_and_come_back(modality, kind):
    says, planted = plant_errors(TRUTH[modality], modality, kind, .2, np.random.default_rng(0))
    assert set(planted) == set(can_plant(modality, kind)) and all(k == round(.2*n) for k, n in planted.values())
    report = faithfulness_report([{a: [v] if isinstance(v, str) else list(v) for a, v in s.items()} for s in says],
                                 TRUTH[modality], modality).set_index(['attribute', 'measure'])
    for a, (k, n) in planted.items(): assert tuple(report.loc[(a, kind), ['count', 'n']]) == (k, n), a
    for row in recover(TRUTH[modality], modality, kind, .2, np.random.default_rng(1)):
        assert abs(row['planted'] - row['recovered']) <= .02, row

def test_what_cannot_be_planted():
    assert 'choose' in message(ValueError, lambda: plant_errors(TRUTH['dermoscopy'], 'dermoscopy', 'invented', .1,
                                                                np.random.default_rng(0)))
    assert 'between 0 and 1' in message(ValueError, lambda: plant_errors(TRUTH['dermoscopy'], 'dermoscopy', 'omitted', 10,
                                                                         np.random.default_rng(0)))
    assert (set(can_plant('chest_xray', 'hallucinated')) == {'opacity', 'device', 'marker'}
            and 'side' not in can_plant('chest_xray', 'extra') and 'corners' not in can_plant('dermoscopy', 'extra'))

def test_the_proof_writes_what_readers_of_the_file_expect(tmp_path):
    found = prove(tmp_path/'words.json', n=40, images=6, seeds=(0,), rates=(0, .4), modalities=('colonoscopy',), progress=False)
    kept = json.loads((tmp_path/'words.json').read_text())
    assert kept['planted'] == found['planted'] and {'shuffled', 'describer', 'command', 'commit', 'seconds'} <= set(kept)
    assert {r['kind'] for r in kept['planted']} == set(KINDS) and kept['describer_images'] == 6
    for a, v in kept['describer']['colonoscopy'].items():
        low, high = kept['describer_bounds']['colonoscopy'][a]
        assert low <= v <= high and high - low > .3, 'six phantoms say little'
    assert all(set(r) == {'modality', 'kind', 'attribute', 'planted', 'recovered', 'n', 'seed'} for r in kept['planted'])
    assert all(abs(s['agreement'] - s['chance']) < .1 for s in kept['shuffled']['colonoscopy'].values())

def test_a_shuffled_bank_is_judged_by_the_measure(monkeypatch):
    truth = draw_truth('dermoscopy', 40, 0)
    assert shuffled_bank(truth, 'dermoscopy', np.random.default_rng(0))['shape']['agreement'] < .8
    monkeypatch.setattr(faithfulness, 'judge', lambda claims, truth, modality: dict.fromkeys(ATTRIBUTES[modality], 'correct'))
    assert all(s['agreement'] == 1 for s in shuffled_bank(truth, 'dermoscopy', np.random.default_rng(0)).values()), (
        'a measure that calls all correct must be caught here')

# --- the filter ------------------------------------------------------------------------------------------------------

@each_modality
def test_repair_of_the_template_gives_the_truth_and_right_words_stay(modality):
    rng = np.random.default_rng(3)
    wrong = plant_errors(TRUTH[modality], modality, 'contradicted', .5, rng)[0]
    for t, s in zip(TRUTH[modality], wrong):
        true, said = say(modality, spoken(modality, t)), say(modality, s)
        assert verify(true, t, modality, 'drop') == verify(true, t, modality, 'repair') == true == describe_attributes(modality, t)
        assert read_claims(verify(said, t, modality, 'repair'), modality) == {a: [v] for a, v in spoken(modality, t).items()}
        assert read_claims(verify(said, t, modality, 'drop'), modality) == {a: [v] for a, v in s.items() if v == t[a]}

@each_modality
def test_no_wrong_claim_is_left_in_free_text(modality):
    rng = np.random.default_rng(4)
    for kind in ('contradicted', 'hallucinated', 'extra'):
        for t, s in zip(TRUTH[modality], plant_errors(TRUTH[modality], modality, kind, .3, rng)[0]):
            for mode in ('drop', 'repair'):
                outcomes = judge(read_claims(verify(reword(modality, s, rng), t, modality, mode), modality), t, modality)
                assert not {'contradicted', 'hallucinated', 'extra'} & set(outcomes.values()), (kind, mode, outcomes)

@each_modality
def test_extra_sentences_are_taken_back(modality):
    for t, s in zip(TRUTH[modality], plant_errors(TRUTH[modality], modality, 'extra', .2, np.random.default_rng(5))[0]):
        text, true = say(modality, s), say(modality, spoken(modality, t))
        assert all(verify(text, t, modality, mode) == true for mode in ('drop', 'repair')), text

def test_the_filter_leaves_alone_what_it_cannot_judge():
    assert verify('It was seen on Monday.', {'hair': 'none'}) == 'It was seen on Monday.' and verify('', {'hair': 'none'}) == ''
    assert verify('Many hairs.', {'hair': 'none'}, mode='drop') == ''
    assert verify('Many hairs.', {'colour': 'red'}) == 'Many hairs.', 'no evidence about hairs'
    assert 'drop or repair' in message(ValueError, lambda: verify('a lesion', {}, mode='mend'))

@pytest.fixture
def work(tmp_path):
    "A working folder whose descriptions have errors."
    table = prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=18, progress=False)
    describe_table(tmp_path/'w', progress=False)
    path = tmp_path/'w'/'descriptions.jsonl'
    rows = [row for row, _ in read_lines(path)]
    for r, m in zip(rows, table.set_index('file_name').modality[[r['file_name'] for r in rows]]):
        if m == 'dermoscopy':
            r['t_mix'] = ('Many hairs cross a green lesion of no colour. The corners are dark. The light is dark. '
                          'The skin is gray.')
    rows[-1]['t_mix'] = ''
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return tmp_path/'w'

def test_a_folder_is_verified_and_the_original_stays(work):
    before = load_descriptions(work).t_mix.tolist()
    verify_table(work, 'drop', progress=False)
    dropped, rows = load_descriptions(work).t_mix.tolist(), [row for row, _ in read_lines(work/'descriptions.jsonl')]
    assert [r.get('t_mix_original', r['t_mix']) for r in rows] == before and dropped != before
    assert all(r['t_mix'] or not r.get('t_mix_original') for r in rows), 'nothing becomes empty'
    counts = verify_table(work, 'repair', progress=False)
    once = (work/'descriptions.jsonl').read_bytes()
    verify_table(work, 'repair', progress=False)
    assert (work/'descriptions.jsonl').read_bytes() == once, 'the same call again changes nothing'
    assert ([r.get('t_mix_original', r['t_mix']) for r in [row for row, _ in read_lines(work/'descriptions.jsonl')]] == before
            and (counts.wrong <= counts.claims).all() and counts.wrong.sum() > 0)
    assert not list(work.glob('*.part'))
    describe_table(work, progress=False)
    assert (work/'descriptions.jsonl').read_bytes() == once, 'and nobody is asked again'

def unknown_truth(work):
    "The folder as one of real images: its table has no attributes."
    table = load_table(work)
    kept = table.drop(columns=[c for c in table if any(c in of for of in ATTRIBUTES.values())])
    write_table(kept, work)
    return kept

def test_on_real_images_only_trusted_attributes_are_judged(work):
    unknown_truth(work)
    with pytest.warns(UserWarning, match=r'vessels \(19 of 24\)') as told:
        counts = verify_table(work, 'drop', progress=False)
    assert len([w for w in told if 'not judged' in str(w.message)]) == 1
    assert all(a in trusted(m) for m, a in zip(counts.modality, counts.attribute)) and counts.wrong.sum() > 0
    rows = [r for r, _ in read_lines(work/'descriptions.jsonl') if r['t_mix'].startswith('Many hairs cross')]
    assert rows and all('The corners are dark.' in r['t_mix'] for r in rows), 'hair and corners are not judged'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert set(verify_table(work, 'drop', progress=False, attributes=['hair', 'skin']).attribute) == {'hair', 'skin'}
    assert "'wings'" in message(ValueError, lambda: verify_table(work, attributes=['wings'], progress=False))

def test_what_is_trusted_comes_from_the_record():
    from read_by_eye import RESULTS, SHIPPED
    record = json.loads(RESULTS.read_text())
    assert (seen_by_eye() == json.loads(SHIPPED.read_text())
            == dict(describer=record['describer'], wrong=errors_by_eye(record['images']))), 'run tests/read_by_eye.py'
    assert seen_by_eye()['describer'] == MeasuringDescriber.name, 'look again: run tests/read_by_eye.py'
    assert (all(set(trusted(m)) == {a for a, (k, n, c) in of.items() if n >= 15 and k/n <= .2 and 1 - k/c >= .2}
                for m, of in seen_by_eye()['wrong'].items()) and trusted('ultrasound') == [])
    assert 'border' in trusted('dermoscopy', beyond=0) and 'border' not in trusted('dermoscopy'), 'soft for nearly all is no knowledge'
    assert 'texture' in trusted('dermoscopy', least=6) and 'texture' not in trusted('dermoscopy'), 'six notes are too few'
    missed = [dict(modality='colonoscopy', text='No lesion; pink mucosa.',
                   seen=dict(lesion=['flat'], colour=['red'], mucosa=['pink', 'red']))]
    assert errors_by_eye(missed) == dict(colonoscopy=dict(mucosa=[0, 1, 0], lesion=[1, 1, 1], colour=[1, 1, 1])), (
        'as evidence, a missed lesion has a wrong colour, too')
    right = [dict(modality='dermoscopy', text=f'A {v} border.', seen=dict(border=[v])) for v in ('soft', 'soft', 'sharp', 'sharp')]
    constant = [r | dict(text='A soft border.') for r in right]
    assert ([errors_by_eye(x)['dermoscopy']['border'] for x in (right, constant)] == [[0, 4, 2], [2, 4, 2]]), (
        'who always says the same is wrong as often as by chance')

def test_a_folder_that_another_process_writes_is_left_alone(work):
    path = work/'descriptions.jsonl'
    before = path.read_bytes()
    with FileLock(f'{path}.lock'):
        assert 'another process' in message(BlockingIOError, lambda: verify_table(work, progress=False))
    assert path.read_bytes() == before
    verify_table(work, progress=False)
    assert path.read_bytes() != before

def test_a_failure_leaves_the_words_as_they_were(work):
    table, path = load_table(work), work/'descriptions.jsonl'
    before = path.read_bytes()
    (Path(table.attrs['root'])/table.file_name.iloc[5]).write_bytes(b'no image')
    with pytest.raises(ValueError): verify_table(work, progress=False)
    assert path.read_bytes() == before and not list(work.glob('*.part'))

def test_evidence_is_the_same_on_all_cores(work):
    table = load_table(work)
    many = pd.concat([table[['file_name', 'modality']]]*12, ignore_index=True)                     # 200 and more are shared out
    root = Path(table.attrs['root'])
    alone = [MeasuringDescriber().measure(load_image(root/f, 64), m) for f, m in zip(table.file_name, table.modality)]
    assert list(measured(many, root)) == alone*12 and list(measured(many[:0], root)) == []
    assert 'ultrasound' in message(ValueError, lambda: list(measured(many.assign(modality='ultrasound'), root)))

def test_words_of_the_describer_itself_are_not_changed(tmp_path):
    prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=18, progress=False)
    before = describe_table(tmp_path/'w', progress=False).t_mix.tolist()
    verify_table(tmp_path/'w', 'repair', progress=False)
    assert load_descriptions(tmp_path/'w').t_mix.tolist() == before

def test_a_folder_without_descriptions(tmp_path):
    prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=18, progress=False)
    assert 'vap-diffusion describe' in message(FileNotFoundError, lambda: verify_table(tmp_path/'w', progress=False))

# --- reports ---------------------------------------------------------------------------------------------------------

def test_a_report_of_a_folder(work, capsys):
    main(['report', str(work), '--results', str(work/'r.csv')])
    report = pd.read_csv(work/'r.csv')
    assert set(report.modality) == set(ATTRIBUTES) and {'t1', 't_mix'} <= set(report.step) and 'coverage' in capsys.readouterr().out

def test_a_report_on_real_images_says_how_far_its_evidence_goes(work):
    unknown_truth(work)
    report = report_table(work, progress=False)
    wrong, noted, _ = seen_by_eye()['wrong']['colonoscopy']['vessels']
    assert set(report[(report.modality == 'colonoscopy') & (report.attribute == 'vessels')].wrong_by_eye) == {wrong/noted}

class Wavering:
    "A model that says one thing or another, by its seed."
    name, calls = 'wavering', []
    def chat(self, messages, temperature=0., seed=None):
        self.calls.append((temperature, seed))
        return f"The lesion is {('round', 'oval')[np.random.default_rng([seed, len(self.calls)]).integers(2)]}. The border is soft."

def test_a_model_that_wavers_is_found_out(work):
    mllm = Wavering(); mllm.calls.clear()
    table = ask_again(work, mllm, times=4, images=18, steps=(1,), progress=False)
    of = table[table.modality == 'dermoscopy'].set_index('attribute')
    assert (.2 < of.rate['shape'] < .9 and of.rate['border'] == of.rate['hair'] == 1
            and of.low['shape'] < of.rate['shape'] < of.high['shape'])
    assert len(mllm.calls) == 4*18 and {t for t, _ in mllm.calls} == {.7} and len({s for _, s in mllm.calls}) == 4
    assert (len(ask_again(work, Wavering(), 2, 5, steps=(1,), progress=False).groupby('modality').images.first())
            and 'twice' in message(ValueError, lambda: ask_again(work, mllm, times=1)))
    assert 'above 0' in message(ValueError, lambda: ask_again(work, mllm, temperature=0))
    assert 'always answers the same' in message(ValueError, lambda: ask_again(work, MeasuringDescriber(), progress=False))

def test_consistency_of_a_back_end(work, tmp_path, monkeypatch, capsys):
    folder = tiny.smolvlm(tmp_path/'tiny')
    command = ['consistency', str(work), '--mllm', f'hf:{folder}', '--times', '2', '--images', '3', '--steps', '1', '--max-tokens', '6']
    monkeypatch.setattr(vaps, 'flaw', lambda text, diagnoses: None if text else 'empty')           # random weights say no sentence
    main(command)
    table = pd.read_csv(work/'consistency.csv')
    assert (set(table.model) == {f'hf:{folder}'} and set(table.times) == {2}
            and table.groupby('modality').images.first().sum() == 3 and table.rate.between(0, 1).all()
            and 'rate' in capsys.readouterr().out)
    monkeypatch.setattr(vaps, 'flaw', lambda text, diagnoses: 'loop')
    with pytest.warns(UserWarning, match='6 of 6'), pytest.raises(SystemExit, match='no two usable answers'):
        main(command)
    with pytest.raises(SystemExit, match='always answers the same'):
        main(['consistency', str(work), '--mllm', 'measure'])

def test_lesions():
    claims = pd.DataFrame(dict(label=list('aaaabb'), group=list('112345'),
                               shape=['round', 'round', 'oval', 'oval', 'round', 'oval']))
    found = lesion_agreement(claims, ['shape'], np.random.default_rng(0)).iloc[0]
    assert (found.same, found.lesions, found.other, found.above, found.low, found.high) == (1, 1, 0, 1, 1, 1)
    ask = lambda claims: lesion_agreement(claims, ['shape'], np.random.default_rng(0))
    assert 'two images' in message(ValueError, lambda: ask(claims.drop_duplicates('group')))
    assert 'two images' in message(ValueError, lambda: ask(claims[claims.group == '1'])), 'nobody is a stranger'
    large = pd.DataFrame(dict(label='a', group=[*['big']*20, *[f'g{i//2}' for i in range(40)]],
                              shape=[*['round']*20, *['oval', 'irregular']*20]))
    found = ask(large).iloc[0]
    assert found.lesions == 21 and abs(found.same - 1/21) < 1e-9, 'a lesion with twenty images counts once'
    assert abs(found.other - (20*38/58/2)/21) < .03, 'also among the strangers'
    assert found.low <= found.above <= found.high and found.low < 0, 'not above strangers'

def test_the_command_needs_a_folder():
    run = subprocess.run([sys.executable, '-m', 'vap_diffusion.faithfulness', 'report'], capture_output=True, text=True)
    assert run.returncode == 2 and 'working folder' in run.stderr and 'Traceback' not in run.stderr

def test_failures_seen_by_eye():
    from read_by_eye import RESULTS, failed, verdict
    seen = dict(lesion=['round'], colour=['pink'], vessels=['lost'], lumen=['left', 'none'])
    assert failed(read_claims('No lesion; clear vessels.', 'colonoscopy'), seen, 'colonoscopy') == ['lesion', 'vessels'], (
        'a missed lesion is one failure')
    assert failed(read_claims('Round red lesion; lumen right.', 'colonoscopy'), seen, 'colonoscopy') == ['colour', 'lumen']
    assert failed(read_claims('Round pink lesion, a tenth of the image; lost vessels.', 'colonoscopy'), seen, 'colonoscopy') == []
    assert failed({'lesion': ['flat'], 'colour': ['red']}, dict(lesion=['none'], colour=['pink']), 'colonoscopy') == ['lesion']
    assert ((verdict([], 'colonoscopy'), verdict(['vessels'], 'colonoscopy'), verdict(['lesion'], 'colonoscopy'),
             verdict(['colour'], 'dermoscopy')) == ('right', 'partly', 'wrong', 'partly'))
    assert failed({'shape': ['irregular', 'oval', 'round']}, dict(shape=['round', 'oval']), 'dermoscopy') == ['shape'], (
        'who names them all is not right')
    for r in json.loads(RESULTS.read_text())['images']:
        assert (r['failed'] == failed(read_claims(r['text'], r['modality']), r['seen'], r['modality'])
                and r['verdict'] == verdict(r['failed'], r['modality'])), r['image']

@pytest.mark.parametrize('modality, text, wanted', [
    ('chest_xray', '- No device\n- Round opacity in the left lung\n- Large heart\n- Clear lungs\n- Slim build\n- Right marker',
     dict(device=['none'], opacity=['round'], side=['left'], heart=['large'], lungs=['clear'], build=['slim'],
          marker=['right'])),
    ('chest_xray', '- Lungs: clear\n- Heart: large\n- Build: slim', dict(lungs=['clear'], heart=['large'], build=['slim'])),
    ('dermoscopy', '1. Round brown lesion\n2. Soft border\n3. Pink skin',
     dict(shape=['round'], colour=['brown'], border=['soft'], skin=['pink']))])
def test_a_list_is_read_line_by_line(modality, text, wanted): assert read_claims(text, modality) == wanted

def test_failed_descriptions_of_a_lesion_do_not_agree(tmp_path):
    from vap_diffusion.faithfulness import agreement_of_lesions
    from vap_diffusion.phantoms import write_phantoms
    write_phantoms(tmp_path/'p', 40, size=32, modalities=['dermoscopy'], progress=False)
    table = prepare('phantoms', tmp_path/'p', tmp_path/'w', n=40, size=32, modality='dermoscopy', progress=False)
    table.attrs['source'] = 'x'; write_table(table.assign(group=[f'g{i//2}' for i in range(len(table))]), tmp_path/'w')
    lines = [dict(file_name=f, label='nevus', t1='', t2='', model='m', prompt_version='v',
                  t_mix='' if i < 20 else 'Round brown lesion.', **({'failed': 'refusal'} if i < 20 else {}))
             for i, f in enumerate(table.file_name)]
    (tmp_path/'w'/'descriptions.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines))
    agreement_of_lesions(tmp_path/'w', path=tmp_path/'found.json')
    assert json.loads((tmp_path/'found.json').read_text())['images'] == 20

def test_text_without_a_full_stop_is_read_in_time():
    from vap_diffusion.faithfulness import read_claims
    start = time.time()
    assert 'colour' in read_claims('a brown lesion and a black lesion with pale border ' * 60)
    assert time.time() - start < 10

def test_a_line_that_is_not_in_the_vocabulary_is_counted_in_its_file(tmp_path):
    from vap_diffusion.faithfulness import score_claims
    lines = [dict(modality='chest_xray', text='x', claims={}),
             dict(modality='dermoscopy', text='brown', claims=dict(colour=['mauve']))]
    (tmp_path/'c.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines))
    with pytest.raises(ValueError, match='line 2: colour is'): score_claims(tmp_path/'c.jsonl', 'dermoscopy')
