#!/bin/sh
# Installs bmex with all it needs into /opt/bmex: the common part of Dockerfile and singularity.def.
# usage: install.sh SOURCE TORCH [TORCH_INDEX_URL]
set -eu
source=$1 torch=$2 index=${3:-}

python3.11 -m venv /opt/bmex
install() {
    /opt/bmex/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint /tmp/constraints.txt "$@"
}
# PyTorch comes first and as asked for: which build it is (CPU, CUDA) is no matter of the others.
grep -v '^torch==' "$source/constraints.txt" >/tmp/constraints.txt
install ${index:+--extra-index-url "$index"} "$torch"
install "$source[validator,demo,spaces,combat]"
rm /tmp/constraints.txt

# What no run needs: tests of the libraries, and what PyTorch has to compile extensions.
packages=$(/opt/bmex/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$packages/torch/test" "$packages/torch/include"
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
for name in dask dipy matplotlib networkx numba numpy pandas scipy sklearn sympy; do
    test ! -d "$packages/$name" || find "$packages/$name" -type d -name tests -prune -exec rm -rf {} +
done

# What TemplateFlow would make in a home that may not be there, on its first import.
export TEMPLATEFLOW_HOME=/opt/templateflow NO_ET=1
/opt/bmex/bin/python -c 'import templateflow'
chmod -R a+rX /opt/templateflow
