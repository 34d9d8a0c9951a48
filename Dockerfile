# docker build -t trqam_fast . && docker run --rm -v "$PWD/runs:/home/trqam/runs" trqam_fast train
# On a GPU: docker run --gpus all ... train --device cuda. Data are kept with -v "$HOME/.ogbench:/home/trqam/.ogbench".
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# gcc and libc6-dev: Triton compiles its launcher; libgomp1: threads; the rest: pictures of MuJoCo without a display.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
COPY --from=build /wheels /wheels
RUN wheel=$(echo /wheels/*.whl) && pip install "$wheel[triton,export,video,tensorboard]" && rm -r /wheels
WORKDIR /home/trqam
ENV HOME=/home/trqam
ENTRYPOINT ["trqam"]
CMD ["--help"]
