# leuko predict with leuko-small on a CPU, without PyTorch, as a user that is not root:
#   docker build -t leuko .
#   docker run --rm --network none -v /data/slides:/in:ro -v /data/results:/out leuko --source /in
# With an export of your own: ... -v /data/export:/model:ro leuko --weights /model/fcos.onnx --source /in
FROM python:3.12-slim AS export
COPY . /src
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu 'torch!=2.13.*' torchvision \
 && pip install --no-cache-dir '/src[export]'
RUN leuko export --save / --name model

FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --no-deps /src \
 && pip install --no-cache-dir -r /src/docs/deploy.txt \
 && rm -r /src
COPY --from=export /model /model
RUN useradd --create-home leuko && mkdir /out && chown leuko /out
USER leuko
WORKDIR /home/leuko
ENTRYPOINT ["leuko", "predict", "--weights", "/model/leuko-small.onnx", "--save", "/out"]
