# leuko predict on a CPU, as a user that is not root:
#   docker build -t leuko .
#   docker run --rm --network none -v /data/slides:/in:ro -v /data/results:/out leuko --source /in
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision \
 && pip install --no-cache-dir '/src[runtime]' \
 && rm -r /src
RUN useradd --create-home leuko && mkdir /out && chown leuko /out
USER leuko
WORKDIR /home/leuko
ENTRYPOINT ["leuko", "predict", "--save", "/out"]
