"""Describing at scale: flaws, prompt files, variants, threads, shards, locks, kills. Nothing is lost, asked twice or dropped in silence."""
import errno, json, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pytest
from vap_diffusion.datasets import prepare
from vap_diffusion.phantoms import write_phantoms
from vap_diffusion.vaps import (PROMPTS, MeasuringDescriber, ServerError, VisualAttributePrompter, add_prompts,
                                check_measurable, describe_table, estimate, flaw, load_descriptions, load_prompts,
                                merge_descriptions, questions, shorten, write_descriptions)
from kills import Steady, check as kill_and_check

class Scripted:
    "Answers by a function of (question's number, attempt)."
    name = 'scripted'
    def __init__(self, answer): self.answer, self.asked = answer, []
    def chat(self, messages, temperature=0., seed=None):
        step = next(i for i in (1, 2, 3) for s in PROMPTS.values() if s.questions[i - 1] in messages[-1]['content'][-1]['text'])
        self.asked.append((step, temperature, seed, len(messages)))
        return self.answer(step, seed or 0)

IMAGE = np.zeros((8, 8, 3), np.uint8)

@pytest.fixture
def work(tmp_path):
    write_phantoms(tmp_path/'phantoms', 18, size=32, progress=False)
    prepare('phantoms', tmp_path/'phantoms', tmp_path/'w', n=18, size=32, progress=False)
    return tmp_path/'w'

# --- answers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, reason', [
    ('Oval pink lesion, a fifth of the image, soft border, smooth texture, centre; gray skin, normal light.', None),
    ('   ', 'empty'), ('...', 'empty'),
    ('I\u2019m sorry, but I can\u2019t assist with that.', 'refusal'), ('Sorry, but I can\u2019t help with this.', 'refusal'),
    ('As an AI language model, I do not have eyes.', 'refusal'), ('I am not able to interpret medical images.', 'refusal'),
    ('It is brown; please consult a dermatologist.', 'refusal'),
    ('La lésion est ronde et brune, avec un bord flou sur une peau claire.', 'another language'),
    ('Поражение круглое, коричневое.', 'another language'),
    ('brown brown brown brown brown brown brown brown brown brown brown brown brown brown brown brown brown brown', 'loop'),
    ('Consistent with basal cell carcinoma.', 'diagnosis (basal cell)'),
    ('Two nevi are seen in the picture.', 'diagnosis (nevi)'), ('The patient cannot be seen; the skin is pale.', None)])
def test_flaws(text, reason): assert flaw(text, PROMPTS['dermoscopy'].diagnoses) == reason

@pytest.mark.parametrize('reason, texts', [
    ('refusal', ('I must decline this request.', 'This image can\u2019t be analyzed.', 'This image cannot be processed.',
                 'I respectfully decline.', 'Unfortunately, I am unable to view images.', 'I don\u2019t see an image.',
                 'No image was provided.', 'Please upload the image again.', 'I\u2019m afraid I can\u2019t do that.',
                 'This violates our content policy.', 'Seek medical attention.', 'I apologize, but I can\u2019t.')),
    ('another language', ('Rundlicher brauner Fleck mit weichem Rand.', 'Kleine Läsion.', 'Die Haut ist hell.',
                          'Lunge klar, Herz normal.', 'Petite lésion brune, bords nets.', 'Lésion ronde.',
                          'La peau est claire.', 'Poumons clairs, coeur normal.',
                          'Mancha oscura en la piel.', 'Lesión redonda marrón.', 'La piel es clara.',
                          'Lesione rotonda marrone.', 'Lesão redonda.')),
    ('loop', ('The lesion is round. '*4, 'The lesion is round. It is brown. The lesion is round. The lesion is round.',
              'round, round, round, round', 'The border is soft.\n'*3)),
    (None, ('Oval brown lesion.', 'Café-au-lait patch, tan.', 'The lesion met the frame at the left.',
            'Round red lesion, en face.', 'As an AI visual assistant, I observe a round brown lesion on pale skin.',
            'Hair: none. Marker: none. Texture: smooth.', 'The image shows a lesion. The image shows hairs.',
            'Texture\nNone\nHair\nNone\nMarker\nNone', 'The border cannot be followed at the left.',
            'I see a round lesion. I cannot see hairs below it.', 'No image of a hair is there.'))])
def test_more_flaws(reason, texts):
    assert {t: flaw(t, PROMPTS['dermoscopy'].diagnoses) for t in texts} == dict.fromkeys(texts, reason)

def test_diagnoses_are_known():
    """Those of chapter 08 and of the data sets' labels, in any number;
    an enlarged heart, a nodule, a mass and a consolidation are what one sees."""
    from vap_diffusion.prompt_bank import DIAGNOSES
    said = lambda name: any(str(flaw(f'There is no {name} here.', p.diagnoses)).startswith('diagnosis') for p in PROMPTS.values())
    assert {n for names in DIAGNOSES.values() for n in names if not said(n)} == {'enlarged heart'}
    for modality, names in dict(dermoscopy='BCC SCC Bowen lentigo lentigines keratoses melanomas basal-cell moles '
                                           'malignancies',
                                colonoscopy='colitis Barrett\u2019s esophagitis adenomas tumours hemorrhoids',
                                chest_xray='Atelectasis atelectases Cardiomegaly Effusion effusions Infiltration Pneumonia '
                                           'pneumothoraces Edema Emphysema Fibrosis Hernia COVID-19').items():
        for n in names.split():
            assert str(flaw(f'A round thing, perhaps {n}.', PROMPTS[modality].diagnoses)).startswith('diagnosis'), n
    for text in ('A melanocytic pattern with a network.', 'Molecular, moled, fibre.'):
        assert flaw(text, PROMPTS['dermoscopy'].diagnoses) is None

def test_no_false_alarms_on_hand_written_sentences():
    "Of 1049 sentences that were written by hand, those pass that name no diagnosis and refuse nothing."
    from vap_diffusion.phantoms import data_path
    flaws = [flaw(json.loads(l)['text'], PROMPTS[p.stem].diagnoses) for p in data_path('claims').glob('*.jsonl')
             for l in p.read_text(encoding='utf-8').splitlines()]
    assert len(flaws) == 1049 and not {f for f in flaws if f and not f.startswith('diagnosis')} - {'refusal'}
    assert flaws.count('refusal') == 5 and sum(f is not None for f in flaws) < 60     # five do refuse, or send to a physician

def test_the_describer_has_no_flaws():
    "Every sentence that the embedded describer can write passes."
    from vap_diffusion.phantoms import ATTRIBUTES, describe_attributes, draw_attributes, CLASSES
    rng = np.random.default_rng(0)
    for modality in ATTRIBUTES:
        for label in CLASSES[modality]:
            for _ in range(50):
                assert flaw(describe_attributes(modality, draw_attributes(label, rng)), PROMPTS[modality].diagnoses) is None

def test_a_flaw_is_asked_again_with_another_seed_and_then_recorded():
    model = Scripted(lambda step, seed: 'A round brown lesion.' if seed == 2 or step != 3 else 'It is a melanoma.')
    said = VisualAttributePrompter(model).describe(IMAGE)
    assert said['t_mix'] == 'A round brown lesion.' and 'failed' not in said
    assert [a[1:3] for a in model.asked if a[0] == 3] == [(0., None), (.7, 1), (.7, 2)]
    said = VisualAttributePrompter(Scripted(lambda step, seed: 'I am sorry.' if step == 1 else 'Round.'), tries=2).describe(IMAGE)
    assert said['t_mix'] == '' and said['failed'].startswith('refusal: I am sorry')

def test_steps_are_left_out():
    for steps, asked in (((1,), [1]), ((1, 3), [1, 3]), ((1, 2, 3), [1, 2, 3])):
        model = Scripted(lambda step, seed: f'answer {step}')
        said = VisualAttributePrompter(model, steps=steps).describe(IMAGE)
        assert sorted(a[0] for a in model.asked) == asked and said['t_mix'] == f'answer {asked[-1]}' and bool(said['t2']) == (2 in steps)
        assert [a[3] for a in model.asked if a[0] == 3] == ([] if 3 not in steps else [5 if 2 in steps else 3])
    with pytest.raises(ValueError, match='steps'): VisualAttributePrompter(model, steps=(3,))

def test_question_2_without_an_answer_stops_the_run(work):
    with pytest.raises(ServerError, match='Question 2 .empty'):
        describe_table(work, Scripted(lambda step, seed: '' if step == 2 else 'Round.'), progress=False)
    assert len(describe_table(work, Scripted(lambda step, seed: 'Round.'), progress=False, steps=(1, 3))) == 18

def test_temperature_needs_a_model_that_samples():
    with pytest.raises(ValueError, match='measure'): VisualAttributePrompter(MeasuringDescriber(), temperature=1.)

def test_long_answers_are_cut_and_counted(work):
    long = 'The lesion is round and brown. It has a sharp border. ' + ', '.join(
        f'{a} {b} spot' for a in 'pale dark small large round oval thin thick'.split()
        for b in 'red pink tan brown black gray white blue'.split()) + '.'
    with pytest.warns(UserWarning, match='18 answers were too long'):
        words = describe_table(work, Scripted(lambda step, seed: long), progress=False, max_words=40)
    assert (set(words.t_mix) == {'The lesion is round and brown. It has a sharp border.'}
            and set(words.shortened) == {str(len(long.split()))})
    assert len(shorten('word ' * 50, 10).split()) == 10

def test_failures_are_recorded_counted_and_asked_again_on_demand(work):
    model = Scripted(lambda step, seed: 'I am sorry.' if step == 3 else 'Round.')
    with pytest.warns(UserWarning, match='no usable answer about 18 images .refusal: 18'):
        words = describe_table(work, model, progress=False)
    assert set(words.t_mix) == {''} and words.failed.str.startswith('refusal').all()
    model.asked.clear(); describe_table(work, model, progress=False); assert not model.asked
    model.answer = lambda step, seed: 'Round.'
    assert set(describe_table(work, model, progress=False, retry=True).t_mix) == {'Round.'}

# --- prompt files ----------------------------------------------------------------------------------------------------

def test_a_modality_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr('vap_diffusion.vaps.PROMPTS', dict(PROMPTS))
    file = tmp_path/'histology.toml'
    file.write_text('modality = "histology"\nversion = "h-1"\nquestion_1 = "Describe."\nquestion_2 = "Think."\n'
                    'question_3 = "Be short."\ndiagnoses = ["tumour"]\n')
    assert add_prompts(file).diagnoses == ('tumour',) and questions('histology') == ('Describe.', 'Think.', 'Be short.')
    with pytest.raises(ValueError, match='measuring describer answers the questions of PROMPTS only'):
        VisualAttributePrompter(MeasuringDescriber(), 'histology').describe(IMAGE)

@pytest.mark.parametrize('text, says', [('modality = "x"', 'version, question_1'), ('modality: x', 'no TOML'),
                                        ('', 'modality'), ('modality = 3\nversion = "1"', 'modality')])
def test_a_prompt_file_with_holes(tmp_path, text, says):
    (tmp_path/'p.toml').write_text(text)
    with pytest.raises(ValueError, match=says) as e: load_prompts(tmp_path/'p.toml')
    assert 'p.toml' in str(e.value)
    with pytest.raises(FileNotFoundError, match='nowhere'): load_prompts(tmp_path/'nowhere.toml')

@pytest.mark.parametrize('value', ['"melanoma"', '5', '[""]'])
def test_diagnoses_are_a_list_of_words(tmp_path, value):
    (tmp_path/'p.toml').write_text('modality = "m"\nversion = "1"\nquestion_1 = "a"\nquestion_2 = "b"\nquestion_3 = "c"\n'
                                   f'diagnoses = {value}\n')
    with pytest.raises(ValueError, match='diagnoses must be a list of words'): load_prompts(tmp_path/'p.toml')

def test_shipped_prompts_name_their_sources():
    for s in PROMPTS.values(): assert s.sources and s.diagnoses and all(len(q) > 60 for q in s.questions)
    paper = PROMPTS['dermoscopy'].questions
    assert (paper[0].startswith('You are an AI visual assistant observing a skin lesion image.')
            and 'approximate proportion in the whole image' in paper[2])
    for s in PROMPTS.values():                                               # the questions themselves name no diagnosis
        for q in s.questions: assert flaw(q, s.diagnoses) is None, (s.modality, q)

# --- many at once ----------------------------------------------------------------------------------------------------

def lines(path): return sorted(path.read_text().splitlines())

def test_threads_write_the_same_lines(work):
    describe_table(work, Steady(), progress=False)
    one = lines(work/'descriptions.jsonl')
    (work/'descriptions.jsonl').unlink()
    model = Steady(.02, concurrency=6)
    describe_table(work, model, progress=False)
    assert lines(work/'descriptions.jsonl') == one and 2 <= model.most <= 6

def test_a_server_that_dies_leaves_what_was_under_way(work):
    "The answers that other threads were waiting for are written before the error is raised."
    model = Steady(.05, concurrency=4, dies_at=20)
    with pytest.raises(ConnectionError): describe_table(work, model, progress=False)
    done = len(load_descriptions(work)); assert 0 < done < 18
    answered = model.answered_last
    assert done == len(answered), 'an answer was thrown away'
    model = Steady(0, concurrency=4)
    assert len(describe_table(work, model, progress=False)) == 18 and not answered & model.answered_last

def test_batches(work):
    class Batched(Steady):
        batch_size, sizes = 5, []
        def chat_many(self, chats): self.sizes.append(len(chats)); return [self.chat(c) for c in chats]
    describe_table(work, Steady(), progress=False)
    one = lines(work/'descriptions.jsonl')
    (work/'descriptions.jsonl').unlink()
    describe_table(work, Batched(), progress=False)
    assert lines(work/'descriptions.jsonl') == one and max(Batched.sizes) == 5

def test_question_2_is_asked_once_for_all_runs(work):
    def asked(**how):
        model = Scripted(lambda step, seed: f'Answer {step}.'); describe_table(work, model, progress=False, **how)
        return sum(a[0] == 2 for a in model.asked)
    assert asked(shard=(1, 3)) == 3 and asked(shard=(2, 3)) == 0 and asked(shard=(3, 3)) == 0    # three modalities
    assert merge_descriptions(work) == 18

def test_shards(work):
    describe_table(work, progress=False); whole = lines(work/'descriptions.jsonl'); (work/'descriptions.jsonl').unlink()
    describe_table(work, progress=False, shard=(1, 2))
    with pytest.raises(FileNotFoundError, match='--merge'): load_descriptions(work)
    with pytest.raises(ValueError, match='lacks shard 2 of 2'): merge_descriptions(work)
    describe_table(work, progress=False, shard=(2, 2)); merge_descriptions(work)
    assert lines(work/'descriptions.jsonl') == whole
    second = work/'descriptions.2-of-2.jsonl'
    second.write_text(''.join(second.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match='lack 1 images'): merge_descriptions(work)
    second.write_text(''.join(json.dumps(json.loads(l) | dict(model='other')) + '\n' for l in second.read_text().splitlines()))
    with pytest.raises(ValueError, match='different models'): merge_descriptions(work)
    assert lines(work/'descriptions.jsonl') == whole
    with pytest.raises(ValueError, match='3/2'): describe_table(work, progress=False, shard=(3, 2))

def test_a_second_process_is_told(work):
    from filelock import FileLock
    with FileLock(f"{work/'descriptions.jsonl'}.lock"):
        done = subprocess.run([sys.executable, '-m', 'vap_diffusion.cli', 'describe', str(work)], capture_output=True, text=True)
    assert done.returncode == 1 and 'another process' in done.stderr and '--shard' in done.stderr and 'Traceback' not in done.stderr

def test_shards_with_retries(work):
    "The last line of an image counts, and each stands once in the whole."
    for i in (1, 2):
        with pytest.warns(UserWarning, match='refusal: 9'):
            describe_table(work, Scripted(lambda step, seed: 'I am sorry.' if step == 3 else 'Round.'), progress=False,
                           shard=(i, 2))
    for i in (1, 2): describe_table(work, Scripted(lambda step, seed: 'Round.'), progress=False, shard=(i, 2), retry=True)
    assert (merge_descriptions(work) == 18 == len(lines(work/'descriptions.jsonl'))
            and not [l for l in lines(work/'descriptions.jsonl') if 'failed' in l])

def test_a_second_merge_keeps_what_a_retry_got(work):
    for i in (1, 2):
        with pytest.warns(UserWarning, match='refusal: 9'):
            describe_table(work, Scripted(lambda step, seed: 'I am sorry.' if step == 3 else 'Round.'), progress=False,
                           shard=(i, 2))
    merge_descriptions(work)
    describe_table(work, Scripted(lambda step, seed: 'Round.'), progress=False, retry=True)
    assert merge_descriptions(work) == 18 and not [l for l in lines(work/'descriptions.jsonl') if 'failed' in l]

def test_shards_of_other_questions(work, monkeypatch):
    from dataclasses import replace
    describe_table(work, progress=False, shard=(1, 2))
    monkeypatch.setitem(PROMPTS, 'dermoscopy', replace(PROMPTS['dermoscopy'], version='vaps-9'))
    describe_table(work, progress=False, shard=(2, 2))
    with pytest.raises(ValueError, match='different questions about dermoscopy .*1-of-2.*vaps-1.*2-of-2.*vaps-9'):
        merge_descriptions(work)
    assert not (work/'descriptions.jsonl').exists() and not (work/'descriptions.part').exists()

@pytest.mark.parametrize('busy', ['descriptions.jsonl', 'descriptions.2-of-2.jsonl'])
def test_no_merge_while_one_writes(work, busy):
    from filelock import FileLock
    for i in (1, 2): describe_table(work, progress=False, shard=(i, 2))
    with FileLock(work/f'{busy}.lock'), pytest.raises(BlockingIOError, match=busy): merge_descriptions(work)
    assert merge_descriptions(work) == 18

def test_shards_at_once_ask_question_2_once(work):
    class Slow(Scripted):
        def chat(self, messages, temperature=0., seed=None):
            time.sleep(.05)
            return super().chat(messages, temperature, seed)
    model = Slow(lambda step, seed: f'Answer {step}.')
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: write_descriptions(work, model, progress=False, shard=(i, 3)), (1, 2, 3)))
    assert sum(a[0] == 2 for a in model.asked) == 3 and merge_descriptions(work) == 18       # three modalities

# --- a server that fails about some images ---------------------------------------------------------------------------

class Poisoned(Steady):
    "Fails about some of the images, each time."
    def __init__(self, poison, error, concurrency=1):
        super().__init__(0, concurrency)
        self.poison, self.error, self.seen = poison, error, []
    def chat(self, messages):
        images = [p['image'] for m in messages for p in m['content'] if p['type'] == 'image']
        if images and (k := images[0].tobytes()) not in self.seen: self.seen.append(k)
        if images and self.poison(self.seen.index(images[0].tobytes())): raise self.error
        return super().chat(messages)

@pytest.mark.parametrize('concurrency', [1, 4])
def test_one_poisoned_image_does_not_block_a_run(work, concurrency):
    model = Poisoned(lambda i: i in (5, 6, 17), ServerError('the server answers with error 400 (image too odd)'), concurrency)
    with pytest.warns(UserWarning, match='no usable answer about 3 images .server: 3'):
        words = describe_table(work, model, progress=False)
    failed = words[words.t_mix == '']
    assert (len(words) == 18 and len(failed) == 3
            and (failed.failed == 'server: the server answers with error 400 (image too odd)').all())
    n = model.n; describe_table(work, model, progress=False); assert model.n == n                 # finished
    model.poison = lambda i: False
    assert set(describe_table(work, model, progress=False, retry=True).failed) == {''}

def test_a_poisoned_image_of_a_batch(work):
    class Batched(Poisoned):
        batch_size = 5
        def chat_many(self, chats): return [self.chat(c) for c in chats]
    with pytest.warns(UserWarning, match='server: 1'):
        words = describe_table(work, Batched(lambda i: i == 7, ServerError('error 500')), progress=False)
    assert len(words) == 18 and (words.t_mix == '').sum() == 1

@pytest.mark.parametrize('concurrency', [1, 4])
def test_a_dead_server_stops_the_run_and_leaves_no_failed_lines(work, concurrency):
    model = Poisoned(lambda i: i >= 6, ServerError('error 500'), concurrency)
    with pytest.raises(ServerError, match='images in a row got no answer, the last: error 500'):
        describe_table(work, model, progress=False)
    assert 0 < len(load_descriptions(work)) <= 6 and set(load_descriptions(work).failed) == {''} and len(model.seen) <= 18
    model.poison = lambda i: False
    assert set(describe_table(work, model, progress=False).failed) == {''}

def test_what_is_no_matter_of_an_image_stops_at_once(work):
    for done, error in ((3, ServerError('no such model (error 404)', stops=True)), (6, ConnectionError('nobody there'))):
        model = Poisoned(lambda i: i == 3, error)
        with pytest.raises(type(error), match=str(error).split('(')[0]): describe_table(work, model, progress=False)
        assert len(load_descriptions(work)) == done and set(load_descriptions(work).failed) == {''}

def test_what_cannot_be_measured_is_said_before(work):
    from vap_diffusion.datasets import load_table, write_table
    check_measurable(work)
    table = load_table(work)
    attrs = table.attrs
    table.loc[3, 'modality'] = 'histology'
    table.attrs = attrs
    write_table(table, work)
    with pytest.raises(ValueError, match="'histology'.*--verify"): check_measurable(work)

def test_a_full_disk(work, monkeypatch):
    "ENOSPC in the middle of a line: the error comes out, and the next call mends the line."
    import vap_diffusion.vaps as vaps
    class Full:
        def __init__(self, file): self.file, self.n = file, 0
        def write(self, text):
            self.n += 1
            if self.n == 8:
                self.file.write(text[:30])
                self.file.flush()
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.file.write(text)
        def __getattr__(self, name): return getattr(self.file, name)
        def __enter__(self): return self
        def __exit__(self, *args): self.file.close()
    describe_table(work, progress=False)
    whole = lines(work/'descriptions.jsonl')
    (work/'descriptions.jsonl').unlink()
    monkeypatch.setattr(vaps, 'open', lambda path, mode='r', **kw: Full(open(path, mode, **kw)) if mode == 'a'
                        else open(path, mode, **kw), raising=False)
    with pytest.raises(OSError, match='No space'): describe_table(work, progress=False)
    monkeypatch.delattr(vaps, 'open')
    assert len(load_descriptions(work)) == 7
    describe_table(work, progress=False); assert lines(work/'descriptions.jsonl') == whole

def test_estimate(work):
    class Counted(Steady):
        usage = (0, 0, 0)
        def chat(self, messages):
            self.usage = tuple(a + b for a, b in zip(self.usage, (1, 100, 10))); return super().chat(messages)
    # 8 asked: 19 requests, 3 of them Question 2
    assert estimate(work, Counted()) == dict(images=10, requests=20, tokens_in=2375, tokens_out=238)
    assert len(load_descriptions(work)) == 8
    model = Counted(); model.chat = lambda messages: Counted.chat(model, messages) and 'I am sorry.'
    with pytest.warns(UserWarning): describe_table(work, model, progress=False)                          # 10 of 18 fail ...
    # ... are asked again, 4 in the sample
    assert estimate(work, Counted(), sample=4, retry=True) == dict(images=6, requests=12, tokens_in=1200, tokens_out=120)
    assert estimate(work, Counted(), sample=8, retry=True)['images'] == 0 and estimate(work, Counted(), retry=True) == {}

@pytest.mark.parametrize('batch_size', [None, 4])
def test_memory_does_not_grow_with_the_table(work, batch_size):
    "Texts and paths are not kept: ten times the images take less than 100 bytes more for each (a path takes 315, texts 590)."
    import pandas as pd, tracemalloc
    from vap_diffusion.datasets import load_table, write_table
    class Instant:
        name = 'instant'
        def chat(self, messages):
            return f'A round brown lesion with a soft border, seen in {len(messages)} turns, on pale skin.'
    class Batched(Instant):
        def chat_many(self, chats): return [self.chat(c) for c in chats]
    Batched.batch_size = batch_size
    table = load_table(work)[['file_name', 'label', 'modality', 'split', 'group']]
    for k in range(167): (Path(table.attrs['root'])/str(k)).symlink_to('.')  # the same files under many names
    def peak(n):
        long = pd.concat([table.assign(file_name=f'{k}/' + table.file_name) for k in range(-(-n//len(table)))],
                         ignore_index=True).head(n)
        long.attrs = table.attrs
        write_table(long, work); (work/'descriptions.jsonl').unlink(missing_ok=True)
        tracemalloc.start()
        try:
            write_descriptions(work, Batched() if batch_size else Instant(), progress=False)
            return tracemalloc.get_traced_memory()[1]
        finally: tracemalloc.stop()
    peak(30)                                                                 # imports and caches
    few, many = peak(300), peak(3000)
    assert (many - few)/2700 < 100, f'{(many - few)/2700:.0f} bytes an image'

def test_kills(tmp_path):
    """kill -9 at random moments; `python tests/kills.py` does it a hundred times for each engine.
    With this seed two of the four fall at any time from the start on, and one line is torn by hand."""
    for engine in ('threads', 'processes'):
        kill_and_check(tmp_path/engine, 4, engine, images=240 if engine == 'processes' else 90, seed=4)

def test_answers_of_many_processes_stand_beside_their_images(tmp_path):
    from vap_diffusion.datasets import load_image, load_table, prepare
    from vap_diffusion.vaps import MeasuringDescriber, VisualAttributePrompter, describe_table
    prepare('phantoms', tmp_path/'p', tmp_path/'w', n=230, size=64, modality='dermoscopy', progress=False)
    # 200 and more: in processes
    words, table = describe_table(tmp_path/'w', progress=False).set_index('file_name').t_mix, load_table(tmp_path/'w')
    alone = VisualAttributePrompter(MeasuringDescriber(), 'dermoscopy')
    assert len(words) == len(table)
    for f in table.file_name[::23]:
        assert words[f] == alone.describe(load_image(tmp_path/'p'/f, MeasuringDescriber.image_size))['t_mix'], f
