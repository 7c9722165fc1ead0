"""The wheel: small, complete, and at home in an empty folder without a network or a cache."""
import ast, configparser, os, re, shutil, subprocess, sys, zipfile
from importlib.metadata import packages_distributions
import pytest
from chapters import ROOT

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Of a copy: pip builds in the folder, where an earlier build may lie."
    out = tmp_path_factory.mktemp('dist')
    ignored = shutil.ignore_patterns('.git', '.venv', 'build', 'runs', 'nbs', 'results', '*.egg-info', '__pycache__')
    source = shutil.copytree(ROOT, out/'source', ignore=ignored)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', out, str(source)],
                   check=True, capture_output=True)
    return next(out.glob('*.whl'))

def test_wheel_holds_weights_and_sample_and_no_notebook(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.startswith('vap_diffusion/assets/course/') and n.endswith('.safetensors') for n in names)
    assert any(n.startswith('vap_diffusion/data/') for n in names)
    assert not any(n.endswith(('.ipynb', '.pt', '.pkl', '.bin')) for n in names)
    assert wheel.stat().st_size < 40e6

def test_wheel_works_in_an_empty_folder_offline(wheel, tmp_path):
    site, empty = tmp_path/'site', tmp_path/'empty'; empty.mkdir()
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', site, str(wheel)],
                   check=True, capture_output=True)
    env = {**os.environ, 'PYTHONPATH': str(site), 'HOME': str(empty), 'HF_HOME': str(empty/'hf'), 'HF_HUB_OFFLINE': '1',
           'https_proxy': 'http://127.0.0.1:9', 'http_proxy': 'http://127.0.0.1:9', 'no_proxy': ''}
    where = subprocess.run([sys.executable, '-c', 'import vap_diffusion; print(vap_diffusion.__file__)'],
                           cwd=empty, env=env, capture_output=True, text=True, check=True).stdout
    assert str(site) in where
    run = subprocess.run([sys.executable, '-m', 'vap_diffusion.cli', 'sample', 'course', '--out', 'pictures', '--n', '2',
                          '--steps', '4'], cwd=empty, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(list((empty/'pictures'/'images').glob('*.png'))) == 2

def test_weights_are_safetensors_with_cards_and_small():
    files = [p for p in (ROOT/'assets').rglob('*') if p.is_file()]
    assert sum(p.stat().st_size for p in files if p.suffix == '.safetensors') < 30e6
    assert not [p for p in files if p.suffix in ('.pt', '.pth', '.bin', '.pkl', '.ckpt')]
    for name, metric in dict(autoencoder='psnr', text='retriev', features='fid', course='fid', describer='read right').items():
        card = (ROOT/'assets'/name/'README.md').read_text().lower()
        assert all(word in card for word in ('python -m vap_diffusion', 'seed', 'second', 'phantoms', metric)), name

def test_what_is_imported_is_required():
    "`pip install .` brings all that any module imports, anywhere in it."
    line = next(l for l in (ROOT/'settings.ini').read_text().splitlines() if l.startswith('requirements'))
    required, where = ({re.split('[<>=]', r)[0].lower().replace('_', '-') for r in line.split('=', 1)[1].split()},
                       packages_distributions())
    for path in (ROOT/'vap_diffusion').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for name in {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - {'vap_diffusion'}:
                assert required & {d.lower().replace('_', '-') for d in where[name]}, (
                    f'{path.name} imports {name}, which settings.ini does not require')

def test_the_tested_set_fits_what_is_required():
    "Each requirement is pinned in constraints.txt, to a version that settings.ini allows; notebook tools stay out of the library."
    from packaging.requirements import Requirement
    parser = configparser.ConfigParser(delimiters=['='], interpolation=None); parser.read(ROOT/'settings.ini')
    listed = {k: [Requirement(r) for r in parser['DEFAULT'][k].split()]
              for k in ('requirements', 'course_requirements', 'dev_requirements')}
    pins = {l.split('==')[0].lower().replace('_', '-'): l.split('==')[1]
            for l in (ROOT/'constraints.txt').read_text().split() if '==' in l}
    for r in sum(listed.values(), []): assert r.specifier.contains(pins[r.name.lower().replace('_', '-')]), r
    assert {'jupyterlab', 'ipywidgets'} == {r.name for r in listed['course_requirements']}
    assert not {'fastcore', 'nbdev', 'jupyterlab', 'ipywidgets', 'pytest'} & {r.name for r in listed['requirements']}
