# pip builds a wheel and installs it, into a virtual environment and as another user.
set -e
mkdir -p /src/noise && cd /src
echo 'def f(): return 42' >noise/__init__.py
echo 'from setuptools import setup; setup(name="noise", version="1", packages=["noise"])' >setup.py
pip install --no-index --no-build-isolation --break-system-packages --no-input .
cd / && python3 -c 'import noise; assert noise.f() == 42'
chmod -R a+rwX /src && su app -c 'cd /src && pip install --user --no-index --no-build-isolation --break-system-packages --no-input .'
