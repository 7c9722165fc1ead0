"""Packaging for nbdev 2: everything is read from settings.ini; shipped weights and the sample travel inside the wheel."""
import configparser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

def listed(key): return cfg.get(key, '').split()

course, dev = listed('course_requirements'), listed('dev_requirements')
setup(
    name=cfg['repo'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'],
    license='Apache-2.0', keywords=cfg['keywords'],
    python_requires=f">={cfg['min_python']}",
    # assets/ and data/ stand at the top of the repository and inside the package once installed
    packages=find_packages(include=['vap_diffusion', 'vap_diffusion.*']) + ['vap_diffusion.assets', 'vap_diffusion.data'],
    package_dir={'vap_diffusion.assets': 'assets', 'vap_diffusion.data': 'data'},
    package_data={'vap_diffusion.assets': ['**/*'], 'vap_diffusion.data': ['**/*']},
    # pictures of the pages, some under the terms of their training images
    exclude_package_data={'vap_diffusion.assets': ['*.png']},
    install_requires=listed('requirements'),
    extras_require=dict(course=course, dev=course + dev),
    entry_points=dict(console_scripts=listed('console_scripts')),
    zip_safe=False,
)
