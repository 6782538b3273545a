// What npm's @vladmandic/face-api says of FER-2013 faces, for peers.py, which calls
//   node face_api.cjs FACES N SECONDS
// FACES holds N grey faces of 48 x 48 bytes. Prints one line of JSON: the index of its answer for each face, in the
// order of fer_lightning's emotions, its parameters, and the images/s one by one on one thread. It runs on
// WebAssembly, which installs without a compiler:
//   npm install @vladmandic/face-api@1.7.15 @tensorflow/tfjs @tensorflow/tfjs-backend-wasm
const fs = require('fs');
const path = require('path');

const load = (name) => require(require.resolve(name, { paths: [process.cwd()] }));
const folderOf = (name) => path.dirname(require.resolve(name, { paths: [process.cwd()] }));

load('@tensorflow/tfjs');
const wasm = load('@tensorflow/tfjs-backend-wasm');
const faceapi = load('@vladmandic/face-api/dist/face-api.node-wasm.js');
const ORDER = ['angry', 'disgusted', 'fearful', 'happy', 'sad', 'surprised', 'neutral'];
const SIDE = 48;
const BATCH = 64;

async function main(file, n, seconds) {
  const { tf } = faceapi;
  wasm.setWasmPaths(`${folderOf('@tensorflow/tfjs-backend-wasm')}/`);
  wasm.setThreadsCount(1);
  await tf.setBackend('wasm');
  await tf.ready();
  const net = faceapi.nets.faceExpressionNet;
  await net.loadFromDisk(path.join(folderOf('@vladmandic/face-api/package.json'), 'model'));

  const pixels = new Uint8Array(fs.readFileSync(file));
  const faces = (start, end) => tf.tidy(() => {
    const part = pixels.subarray(start * SIDE * SIDE, end * SIDE * SIDE);
    return tf.tile(tf.tensor4d(Float32Array.from(part), [end - start, SIDE, SIDE, 1]), [1, 1, 1, 3]);
  });
  const answers = [];
  for (let start = 0; start < n; start += BATCH) {
    const batch = tf.tidy(() => tf.unstack(faces(start, Math.min(n, start + BATCH))));
    for (const says of [await net.predictExpressions(batch)].flat()) {
      answers.push(ORDER.reduce((best, name, i) => (says[name] > says[ORDER[best]] ? i : best), 0));
    }
    tf.dispose(batch);
  }
  const one = await faceapi.toNetInput(faces(0, 1));
  const forward = async () => { const out = net.forwardInput(one); await out.data(); out.dispose(); };
  for (let i = 0; i < 20; i++) await forward();
  const start = performance.now();
  let done = 0;
  for (; performance.now() - start < 1000 * seconds; done++) await forward();
  const elapsed = (performance.now() - start) / 1000;
  const parameters = [net, net.faceFeatureExtractor]
    .flatMap((part) => part.getParamList()).reduce((sum, { tensor }) => sum + tensor.size, 0);
  console.log(JSON.stringify({ answers, parameters, images_per_second: done / elapsed }));
}

main(process.argv[2], Number(process.argv[3]), Number(process.argv[4]));
