"""The command line on tiny phantoms: every verb, going on after a stop, and what a user reads when something is wrong."""
import io, json, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
import pytest
from PIL import Image
from vap_diffusion.datasets import alone, load_table

ENV = {**os.environ, 'COLUMNS': '200'}
TWO = {**ENV, 'OMP_NUM_THREADS': '2'}                                    # quickstart trains its models side by side, each with a thread

def vap(*args, ok=True, cwd=None, timeout=600, env=ENV):
    "Run a verb in a process of its own; returns its finished process."
    done = subprocess.run([sys.executable, '-m', 'vap_diffusion.cli', *map(str, args)],
                          capture_output=True, text=True, cwd=cwd, timeout=timeout, env=env)
    if ok: assert done.returncode == 0, done.stderr[-2000:]
    return done

def fails(*args, **kw) -> str:
    "The one error line of a verb that must fail."
    done = vap(*args, ok=False, **kw)
    assert done.returncode in (1, 2), (done.returncode, done.stdout, done.stderr)
    assert 'Traceback' not in done.stderr, done.stderr
    lines = [l for l in done.stderr.splitlines() if l.startswith('error: ')]
    assert len(lines) == 1, done.stderr
    return lines[0]

@pytest.fixture(scope='session')
def work(tmp_path_factory):
    "A working folder with features and two tiny models, made by the verbs."
    root = tmp_path_factory.mktemp('cli'); w = root/'w'
    vap('prepare', '--dataset', 'phantoms', '--root', root/'phantoms', '--out', w, '--n', 120)
    vap('describe', w); vap('encode', w)
    vap('train', w, '--no-text', '--steps', 4, '--no-watch'); vap('train', w, '--steps', 4)
    return w

# --- starting up -----------------------------------------------------------------------------------------------------

def seconds(code, times=4):
    best = float('inf')
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best

def test_importing_the_package_costs_little(): assert seconds('import vap_diffusion') - seconds('pass') < 0.3

def test_help_is_quick_and_lists_the_verbs():
    code = 'import sys; sys.argv = ["vap-diffusion", "--help"]; from vap_diffusion.cli import main; main()'
    assert seconds(f'try:\n {code}\nexcept SystemExit: pass') < 1
    text = vap('--help').stdout
    assert all(verb in text for verb in 'doctor prepare describe encode train sample evaluate quickstart'.split())

def test_the_console_script_is_there(): assert shutil.which('vap-diffusion', path=str(Path(sys.executable).parent))

def test_doctor_names_each_part_and_its_remedy(tmp_path):
    text = vap('doctor', env=ENV | dict(HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path))).stdout
    assert all(word in text for word in ('Python', 'torch', 'BiomedCLIP', 'SD autoencoder', 'Inception', 'MLLM server', 'hf download'))

@pytest.mark.parametrize('weights', [True, False])
@pytest.mark.parametrize('code', [True, False])
def test_doctor_wants_weights_and_code_of_inception(weights, code, tmp_path, monkeypatch):
    import importlib.util, torch
    from vap_diffusion import cli, metrics
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: (code or None) if name == 'torch_fidelity' else find(name, *a))
    monkeypatch.setattr(cli, 'server', lambda: '')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    if weights: (tmp_path/'checkpoints').mkdir(); (tmp_path/'checkpoints'/Path(metrics.InceptionFeatures.url).name).touch()
    _, here, _, command = next(f for f in cli.findings() if f[0] == 'Inception')
    assert (here == ('here' if weights and code else 'missing') and ('curl' in command) != weights
            and ('pip install torch-fidelity' in command) != code)

# --- the verbs -------------------------------------------------------------------------------------------------------

def test_a_trained_pipeline_has_a_card_with_its_data_and_budget(work):
    from huggingface_hub import ModelCard
    for run, kind, words in (('class', 'unconditional-image-generation', 'none: the class alone'), ('vap', 'text-to-image', 'by measure')):
        card, made = (ModelCard.load(work/'models'/run/'pipeline'/'README.md'),
                      json.loads((work/'models'/run/'train.json').read_text()))
        assert (card.data.license, card.data.pipeline_tag) == ('apache-2.0', kind) and words in card.text and 'phantoms' in card.text
        assert (all(f'- **{k}**: {made[k]}\n' in card.text for k in ('steps', 'images_seen', 'seconds', 'device'))
                and str(work) not in card.text)

def test_stages_leave_what_they_promise(work):
    assert (work/'table.parquet').exists() and (work/'features'/'moments.safetensors').exists()
    lines = [json.loads(l) for l in (work/'descriptions.jsonl').read_text().splitlines()]
    assert len(lines) == 120 and {'file_name', 'label', 't1', 't2', 't_mix', 'model', 'prompt_version'} <= set(lines[0])
    for name in ('vap', 'class'):
        assert (work/'models'/name/'pipeline'/'model_index.json').exists() and (work/'models'/name/'report.html').exists()
    assert ([p.name for p in sorted((work/'models'/'vap'/'watch').iterdir())] == [f'step-{i:06}.png' for i in (1, 2, 3, 4)]
            and not (work/'models'/'class'/'watch').exists())

def test_stages_repeat_without_harm(work):
    before = (work/'descriptions.jsonl').read_bytes()
    vap('describe', work); vap('encode', work); vap('train', work, '--steps', 4)
    assert (work/'descriptions.jsonl').read_bytes() == before

def test_describe_goes_on_after_a_torn_line(work, tmp_path):
    w = tmp_path/'w'; shutil.copytree(work, w, ignore=shutil.ignore_patterns('models', 'features'))
    whole = (w/'descriptions.jsonl').read_text(); (w/'descriptions.jsonl').write_text(whole[:len(whole)//2])
    vap('describe', w)
    assert sorted((w/'descriptions.jsonl').read_text().splitlines()) == sorted(whole.splitlines())

def test_sample_evaluate_and_same_seed_same_bytes(work, tmp_path):
    model = work/'models'/'vap'/'pipeline'
    for out in ('a', 'b'): vap('sample', model, '--out', tmp_path/out, '--n', 6, '--seed', 3, '--steps', 4)
    a, b = (sorted((tmp_path/o/'images').glob('*.png')) for o in 'ab')
    assert len(a) == 6 and [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    info = Image.open(a[0]).info
    assert ({'class', 'prompt', 'seed', 'model'} <= {k.lower() for k in info}
            and 'synthetic' in ' '.join([*info, *map(str, info.values())]).lower())
    said = vap('sample', work/'models'/'class'/'pipeline', '--out', tmp_path/'c', '--like', work, '--n', 24,
               '--steps', 3, '--prompt', 'black hairy lesion').stderr
    info = Image.open(tmp_path/'c'/'images'/'00007.png').info
    assert ('ignores the prompt' in said and info['Prompt'] == '' and (info['Number'], info['Steps']) == ('7', '3')
            and info['Guidance'].startswith('2, ')), 'no image is said to show what its model has not read'
    done = vap('evaluate', tmp_path/'c', '--real', work)
    found = json.loads((tmp_path/'c'/'evaluation-test.json').read_text())
    assert found['n'] == 12 and found['fid'] > 0 and 'mostly bias' in done.stderr, 'fewer images than features: judged, with a warning'
    vap('evaluate', tmp_path/'c', '--real', work, '--split', 'train', '--all')
    found, images = json.loads((tmp_path/'c'/'evaluation-train.json').read_text()), load_table(work).split.value_counts()
    assert (found['n'], found['n_real'], found['n_floor']) == (24, images['train'], images['test']) and found['fid_floor'] > 0

def test_sample_goes_on_where_it_stopped(work, tmp_path):
    model = work/'models'/'vap'/'pipeline'
    vap('sample', model, '--out', tmp_path/'a', '--n', 5, '--steps', 3)
    whole = {p.name: p.read_bytes() for p in (tmp_path/'a'/'images').glob('*.png')}
    for name in list(whole)[1:4]: (tmp_path/'a'/'images'/name).unlink()
    vap('sample', model, '--out', tmp_path/'a', '--n', 5, '--steps', 3)
    assert {p.name: p.read_bytes() for p in (tmp_path/'a'/'images').glob('*.png')} == whole

def test_the_course_model_paints_within_20_seconds(tmp_path):
    "Or, on a slow or busy machine, in a few times what importing torch and diffusers takes there."
    imports = seconds('import torch; from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler', 1)
    start = time.perf_counter(); vap('sample', 'course', '--out', tmp_path/'s', '--n', 1)
    assert time.perf_counter() - start < max(20, 4*imports)
    assert Image.open(next((tmp_path/'s'/'images').glob('*.png'))).size == (64, 64)

def test_ctrl_c_in_training_loses_nothing(work, tmp_path):
    w = tmp_path/'w'; shutil.copytree(work, w, ignore=shutil.ignore_patterns('models'))
    run = subprocess.Popen([sys.executable, '-m', 'vap_diffusion.cli', 'train', str(w), '--steps', '60'],
                           stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
    log = w/'models'/'vap'/'log.jsonl'
    for _ in range(2400):
        time.sleep(0.1)
        if run.poll() is not None or log.exists() and log.read_text(): break    # from its first line on, 59 steps are left
    run.send_signal(signal.SIGINT); _, err = run.communicate(timeout=120)
    assert run.returncode == 130 and 'same command' in err and 'Traceback' not in err, err
    out = vap('train', w, '--steps', 60)
    assert json.loads((w/'models'/'vap'/'train.json').read_text())['steps'] == 60

def stop(args, marker, until=lambda: True, env=ENV):
    "Start a verb, press Ctrl-C when `marker` appears in what it says and `until` holds, and return what it said."
    run = subprocess.Popen([sys.executable, '-m', 'vap_diffusion.cli', *map(str, args)],
                           stderr=subprocess.STDOUT, stdout=subprocess.PIPE, env=env)
    parts, deadline = [], time.time() + 240
    reader = threading.Thread(target=lambda: parts.extend(iter(lambda: run.stdout.read1(256), b'')), daemon=True)
    reader.start()
    said = lambda: b''.join(parts).decode(errors='replace')
    try:
        while marker not in said() or not until():
            assert run.poll() is None and time.time() < deadline, f'{args[0]} came to no {marker!r} to stop at: {said()[-500:]}'
            time.sleep(.05)
        run.send_signal(signal.SIGINT)
        run.wait(120); reader.join(10)
    finally:
        if run.poll() is None: run.kill()
    said = said()
    assert run.returncode == 130 and 'same command' in said and 'Traceback' not in said, said[-2000:]
    return said

def test_ctrl_c_in_each_stage_and_the_same_command_goes_on(tmp_path):
    w = tmp_path/'w'
    lines = lambda: (w/'descriptions.jsonl').read_text().splitlines() if (w/'descriptions.jsonl').exists() else []
    stages = [(('prepare', '--dataset', 'phantoms', '--root', tmp_path/'phantoms', '--out', w, '--n', 600), 'phantom', lambda: True),
              (('describe', w), 'describing', lambda: len(lines()) > 20), (('encode', w), 'encoding images', lambda: True)]
    for args, marker, until in stages: stop(args, marker, until); vap(*args)
    assert len(list((tmp_path/'phantoms').rglob('*.png'))) == 600 and len(lines()) == 600
    sample = ('sample', 'course', '--out', tmp_path/'s', '--n', 70, '--steps', 10)
    stop(sample, 'sampling'); vap(*sample); assert len(list((tmp_path/'s'/'images').glob('*.png'))) == 70
    evaluate = ('evaluate', tmp_path/'s', '--real', w, '--split', 'train', '--bootstrap', 20)
    stop(evaluate, 'loading images'); assert 'fid' in vap(*evaluate).stdout.lower()

def test_ctrl_c_in_quickstart_stops_both_trainings(tmp_path):
    args = ('quickstart', '--out', tmp_path/'q', '--images', 300, '--minutes', 0.4, '--n', 30)
    logs = [tmp_path/'q'/'models'/name/'log.jsonl' for name in ('class', 'vap')]
    stop(args, 'train:', lambda: all(log.exists() and log.read_text() for log in logs), TWO)
    for log in logs:
        with alone(log.parent): pass                # BlockingIOError if a training went on behind our back: it holds this lock
    vap(*args, env=TWO)
    made = json.loads((tmp_path/'q'/'results.json').read_text())
    assert made['class']['n'] == made['class+text']['n'] == 30 and (tmp_path/'q'/'report.html').exists()

# --- bad input: culprit and remedy in one line -----------------------------------------------------------------------

def test_root_that_is_not_there(tmp_path):
    assert 'nowhere' in fails('prepare', '--root', tmp_path/'nowhere', '--out', tmp_path/'w')

def test_root_that_is_empty(tmp_path):
    (tmp_path/'empty').mkdir(); assert 'empty' in fails('prepare', '--root', tmp_path/'empty', '--out', tmp_path/'w')

def test_stages_out_of_order(tmp_path):
    (tmp_path/'w').mkdir()
    for verb in ('describe', 'encode', 'train'): assert 'vap-diffusion prepare' in fails(verb, tmp_path/'w'), verb

def test_stages_that_were_left_out(work, tmp_path):
    shutil.copy(work/'table.parquet', tmp_path)
    assert 'vap-diffusion describe' in fails('encode', tmp_path)
    shutil.copy(work/'descriptions.jsonl', tmp_path)
    assert 'vap-diffusion encode' in fails('train', tmp_path, '--steps', 1)

def test_unknown_names(work, tmp_path):
    model = work/'models'/'vap'/'pipeline'
    message = fails('sample', model, '--out', tmp_path/'s', '--label', 'nevu')
    assert 'nevu' in message and 'nevus' in message
    assert 'cpu' in fails('train', work, '--preset', 'tpu', '--name', 'x', '--steps', 1)
    assert 'leave out one' in fails('train', work, '--no-text', '--prototypes', '--name', 'x', '--steps', 1)
    assert 'choose one' in fails('train', work, '--watch', 2, '--no-watch', '--name', 'x', '--steps', 1)
    assert 'isic2018' in fails('prepare', '--dataset', 'isic1999', '--root', tmp_path, '--out', tmp_path/'w')
    assert 'nowhere' in fails('sample', tmp_path/'nowhere', '--out', tmp_path/'s')
    assert 'mllm' in fails('describe', work, '--mllm', 'wishful').lower()
    assert '--batch-size does not fit --mllm measure' in fails('describe', work, '--batch-size', 2)

def test_zero_images(work, tmp_path):
    assert 'at least 1' in fails('sample', work/'models'/'vap'/'pipeline', '--out', tmp_path/'s', '--n', 0)

@pytest.mark.parametrize('verb, option, value', [
    ('sample course --out s', '--batch-size', 0), ('sample course --out s', '--steps', 0), ('train', '--accumulate', 0),
    ('train', '--batch-size', 0), ('train', '--steps', 0), ('train', '--minutes', 0), ('train', '--seed', -1),
    ('encode', '--size', 0), ('encode', '--adapt-minutes', -1), ('describe', '--max-words', 0),
    ('quickstart --out q', '--n', 0)])
def test_numbers_that_are_too_small(verb, option, value, work, tmp_path):
    "Before anything is loaded or written."
    assert (f"'{option}'" in fails(*verb.split(), *([] if ' ' in verb else [work]), option, value, cwd=tmp_path)
            and not list(tmp_path.iterdir()))

def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path/'thesis.docx').write_text('dear')
    for line in ('sample course --n 1 --steps 1 --out thesis.docx', 'sample course --n 1 --steps 1 --out thesis.docx/s',
                 'prepare --dataset phantoms --n 9 --out thesis.docx/w'):
        message = fails(*line.split(), cwd=tmp_path)
        assert 'thesis.docx is a file' in message and 'choose a' in message and 'Errno' not in message
    assert (tmp_path/'thesis.docx').read_text() == 'dear'

@pytest.mark.parametrize('raising, said', [
    ('PermissionError("the server refuses the key: set another")', 'the server refuses the key: set another'),
    ('PermissionError(13, "denied", "w/table.parquet")',
     'no permission for w/table.parquet: choose another folder, or change its rights'),
    ('MemoryError("one chat does not fit: choose a smaller model")', 'one chat does not fit: choose a smaller model'),
    ('MemoryError()', 'memory is full: use fewer images or a smaller batch'),
    ('type("OutOfMemoryError", (RuntimeError,), {})("20 GiB are wanted")',
     'memory is full (20 GiB are wanted): use fewer images or a smaller batch'),
    ('type("ServerError", (RuntimeError,), {})("the server is gone: start it")', 'the server is gone: start it'),
    ('OSError(28, "No space left on device", "w/x.part")',
     'the disk is full (w/x.part): free some space, and the same command goes on')])
def test_what_the_machine_says_in_one_line(raising, said):
    done = subprocess.run([sys.executable, '-c', 'import sys\nfrom vap_diffusion import cli\n@cli.app.command()\n'
                           f'def fall(): raise {raising}\nsys.argv[1:] = ["fall"]\ncli.main()'],
                          capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (1, f'error: {said}\n')

def test_a_no_to_the_question_of_costs(work, monkeypatch, capsys):
    from vap_diffusion import cli, vaps
    monkeypatch.setattr(vaps, 'make_mllm', lambda *a, **k: None)
    monkeypatch.setattr(vaps, 'estimate', lambda *a, **k: dict(images=3, requests=9, tokens_in=1, tokens_out=1))
    monkeypatch.setattr(sys, 'argv', ['vap-diffusion', 'describe', str(work), '--mllm', 'openai:m@http://127.0.0.1:9/v1'])
    monkeypatch.setattr(sys, 'stdin', io.StringIO('n\n'))
    with pytest.raises(SystemExit): cli.main()
    assert 'error: there is no terminal to ask whether to go on: give --yes' in capsys.readouterr().err
    sys.argv.extend(['--seed', '0']); monkeypatch.setattr(sys.stdin, 'isatty', lambda: True)
    other = threading.Timer(600, print); other.daemon = True; other.start()   # a host's own thread is no reason to end the host
    with pytest.raises(SystemExit) as e: cli.main()
    other.cancel()
    assert e.value.code == 130 and 'stopped' in capsys.readouterr().err

def test_verify_reads_all_descriptions(work):
    before = (work/'descriptions.jsonl').read_bytes()
    assert f'vap-diffusion describe {work} --merge --verify drop' in fails('describe', work, '--shard', '1/2', '--verify', 'drop')
    assert 'drop or repair' in fails('describe', work, '--merge', '--verify', 'nonsense')
    assert (work/'descriptions.jsonl').read_bytes() == before

def test_a_checkpoint_of_another_architecture(work):
    from diffusers.training_utils import EMAModel
    import torch
    from vap_diffusion.training import save_checkpoint
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters()); model(torch.zeros(1, 2)).sum().backward(); optimizer.step()
    save_checkpoint(work/'models'/'other'/'checkpoints', model, EMAModel(model.parameters()), optimizer,
                    dict(step=1, seconds=1., cpu_seconds=1., mean_loss=1.))
    message = fails('train', work, '--name', 'other', '--steps', 2, '--no-watch')
    assert 'another architecture' in message and 'step-000000001' in message

def test_a_run_with_another_class_list(work, tmp_path):
    w = tmp_path/'w'; shutil.copytree(work, w)
    record = json.loads((w/'features'/'features.json').read_text())
    (w/'features'/'features.json').write_text(json.dumps(record | dict(classes=record['classes'][::-1])))
    message = fails('train', w, '--steps', 4)
    assert 'another class list' in message and str(w/'models'/'vap') in message

def test_a_class_without_prompts(work, tmp_path):
    pipe = tmp_path/'pipe'; shutil.copytree(work/'models'/'vap'/'pipeline', pipe)
    bank = json.loads((pipe/'prompt_bank.json').read_text()); del bank['prompts']['nevus']
    (pipe/'prompt_bank.json').write_text(json.dumps(bank))
    message = fails('sample', pipe, '--out', tmp_path/'s', '--label', 'nevus', '--n', 1)
    assert "'nevus'" in message and 'bank' in message and 'melanoma' in message
    vap('sample', pipe, '--out', tmp_path/'s', '--label', 'nevus', '--n', 1, '--steps', 1, '--prompt', 'Round lesion.')

def test_a_prompt_that_is_too_long(tmp_path):
    done = vap('sample', 'course', '--out', tmp_path/'s', '--n', 1, '--steps', 1,
               '--prompt', 'Oval brown lesion with a soft border. '*40 + 'Many hairs.')
    warned = [l for l in done.stderr.splitlines() if 'warning: ' in l]
    assert len(warned) == 1 and '1 of 1 prompts' in warned[0] and 'loses' in warned[0] and done.stderr.count('Traceback') == 0
    assert any(l.startswith('warning: ') for l in done.stderr.replace('\r', '\n').splitlines()), (
        'on a line of its own, not in that of the bar')

def test_a_folder_of_another_run(work, tmp_path):
    model = work/'models'/'vap'/'pipeline'
    vap('sample', model, '--out', tmp_path/'s', '--n', 1, '--steps', 2)
    assert 'another run' in fails('sample', model, '--out', tmp_path/'s', '--n', 1, '--seed', 5, '--steps', 2)
    (tmp_path/'t').mkdir(); (tmp_path/'t'/'thesis.docx').write_text('dear')
    assert 'thesis.docx' in fails('sample', model, '--out', tmp_path/'t', '--n', 1)
    assert (tmp_path/'t'/'thesis.docx').read_text() == 'dear'

def test_features_of_another_text_encoder(work, tmp_path):
    w = tmp_path/'w'; shutil.copytree(work, w, ignore=shutil.ignore_patterns('models'))
    record = json.loads((w/'features'/'features.json').read_text())
    vap('train', w, '--steps', 1)
    hashes = {k: v for k, v in record.items() if 'text' in k and isinstance(v, (str, dict))}
    assert hashes, 'features.json says nothing of the text encoder'
    text = json.dumps(record).replace(json.dumps(record.get('text_fingerprint')), '"0000"')
    (w/'features'/'features.json').write_text(text)
    assert 'text encoder' in fails('train', w, '--steps', 2)

def test_full_disk(work, tmp_path):
    "A small tmpfs shows it; needs the right to mount."
    small = tmp_path/'small'; small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=48k', 'tmpfs', str(small)], capture_output=True).returncode:
        pytest.skip('no right to mount a tmpfs')
    try:
        message = fails('sample', 'course', '--out', small/'s', '--n', 40, '--steps', 2)
        assert 'disk is full' in message and str(small) in message
        subprocess.run(['mount', '-o', 'remount,size=4m', str(small)], check=True)
        vap('sample', 'course', '--out', small/'s', '--n', 40, '--steps', 2)
        for p in (small/'s'/'images').glob('*.png'): Image.open(p).load()
    finally: subprocess.run(['umount', str(small)])

def test_without_a_verb_the_help_is_no_error():
    done = vap(); assert done.returncode == 0 and 'prepare' in done.stdout and 'error' not in done.stderr

def test_small_mistakes_are_named(work, tmp_path):
    assert "--shard '/2' is none" in fails('describe', work, '--shard', '/2')
    vap('sample', 'course', '--out', tmp_path/'s', '--n', 3, '--steps', 1)
    assert f'{tmp_path/"s"} gives 3 images' in fails('evaluate', tmp_path/'s', '--real', work)
    assert 'give the verbs one after another' in fails('quickstart', '--dataset', 'csv', '--root', tmp_path, '--out', tmp_path/'q')
