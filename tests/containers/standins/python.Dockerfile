# Stands in for python:3.11-bookworm and its slim kin: Debian's Python under the paths that Docker's image has, pip too.
FROM deskmate-standin-python
RUN ln -s /usr/bin/python3 /usr/local/bin/python \
    && python -m venv /tmp/v \
    && mkdir /usr/local/lib/python3.11/site-packages \
    && cp -r /tmp/v/lib/python3.11/site-packages/pip* /usr/local/lib/python3.11/site-packages/ \
    && echo /usr/local/lib/python3.11/site-packages >/usr/local/lib/python3.11/dist-packages/upstream.pth \
    && printf '#!/bin/sh\nexec python -m pip "$@"\n' >/usr/local/bin/pip && chmod +x /usr/local/bin/pip \
    && rm -rf /tmp/v
CMD ["python3"]
