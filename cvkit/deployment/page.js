// Names what a picture shows, with the model that the page itself holds: nothing is fetched.
"use strict";
{
  const element = name => document.getElementById(`model-${name}`);
  const facts = JSON.parse(element("facts").textContent);
  const [height, width, channels] = facts.input_size;
  const say = words => { element("status").textContent = words; };

  async function unpack(name) {
    const text = atob(element(name).textContent);
    const bytes = new Uint8Array(text.length);
    for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function load() {
    const [library, wasm, onnx] = await Promise.all(["library", "wasm", "onnx"].map(unpack));
    const ort = await import(URL.createObjectURL(new Blob([library], {type: "text/javascript"})));
    // Several threads need headers that a file does not have.
    Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary: wasm.buffer});
    const session = await ort.InferenceSession.create(onnx, {executionProviders: ["wasm"]});
    return async pixels => {
      const images = new ort.Tensor("uint8", new Uint8Array(pixels), [1, height, width, channels]);
      return (await session.run({images})).probabilities.data;
    };
  }

  function refuse(image, height, width) {
    throw new RangeError(`the model takes ${width}×${height} pixels, and this picture comes to ` +
                         `${image.width}×${image.height}`);
  }

  // An image here is {height, width, pixels}: a row after the other, all channels of a pixel
  // together. Pixels are clamped and rounded, halves to the even number, as OpenCV does.

  // Decodes a file as cvkit does: turned as the camera says, colours as they are in the file, and
  // transparent pixels on the background. Returns the image, and a canvas that shows it.
  async function read(file) {
    const bitmap = await createImageBitmap(file, {colorSpaceConversion: "none"});
    const canvas = element("picture").cloneNode();
    Object.assign(canvas, {width: bitmap.width, height: bitmap.height});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.fillStyle = `rgb(${facts.background})`;
    context.fillRect(0, 0, bitmap.width, bitmap.height);
    context.drawImage(bitmap, 0, 0);
    const from = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
    const pixels = new Uint8ClampedArray(bitmap.width * bitmap.height * channels);
    for (let old = 0, place = 0; old < from.length; old += 4)
      if (channels === 3) for (let c = 0; c < 3; c++) pixels[place++] = from[old + c];
      // Grey as Pillow has it.
      else pixels[place++] = (19595 * from[old] + 38470 * from[old + 1] + 7471 * from[old + 2]
                              + 32768) >> 16;
    return [{height: bitmap.height, width: bitmap.width, pixels}, canvas];
  }

  // Of each of `count` new places along a side of `length`: the old ones that it covers, in parts.
  function areas(length, count) {
    const scale = length / count;
    return Array.from({length: count}, (_, place) => {
      const start = place * scale, end = Math.min(start + scale, length), parts = [];
      for (let old = Math.floor(start); old < end; old++) {
        const part = Math.min(old + 1, end) - Math.max(old, start);
        // What is less is an error of rounding.
        if (part > 1e-3) parts.push([old, part / (end - start)]);
      }
      return parts;
    });
  }

  // The same of the two old ones between which it lies.
  function neighbours(length, count) {
    return Array.from({length: count}, (_, place) => {
      const centre = Math.min(Math.max((place + 0.5) * length / count - 0.5, 0), length - 1);
      const old = Math.min(Math.floor(centre), Math.max(length - 2, 0)), part = centre - old;
      return part ? [[old, 1 - part], [old + 1, part]] : [[old, 1]];
    });
  }

  function resample({height, width, pixels}, newHeight, newWidth, parts) {
    if (newHeight === height && newWidth === width) return {height, width, pixels};
    const across = parts(width, newWidth), down = parts(height, newHeight);
    const rows = new Float32Array(height * newWidth * channels);
    const made = new Uint8ClampedArray(newHeight * newWidth * channels);
    const row = newWidth * channels, sums = new Float64Array(row);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < newWidth; x++)
        for (const [old, part] of across[x])
          for (let c = 0; c < channels; c++)
            rows[y * row + x * channels + c] += part * pixels[(y * width + old) * channels + c];
    for (let y = 0; y < newHeight; y++) {
      sums.fill(0);
      for (const [old, part] of down[y])
        for (let x = 0; x < row; x++) sums[x] += part * rows[old * row + x];
      made.set(sums, y * row);
    }
    return {height: newHeight, width: newWidth, pixels: made};
  }

  const steps = {
    // Sides that become smaller are averaged over areas, then the others stretched.
    Resize(image, {height, width}) {
      const smaller = [Math.min(image.height, height), Math.min(image.width, width)];
      return resample(resample(image, ...smaller, areas), height, width, neighbours);
    },
    SmallestMaxSize(image, {max_size}) {
      const scale = max_size / Math.min(image.height, image.width);
      // Rounded as Python does.
      const [height, width] = new Uint32Array([image.height, image.width].map(side => {
        const low = Math.floor(side * scale), rest = side * scale - low;
        return Math.max(1, rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low);
      }));
      return resample(image, height, width, scale < 1 ? areas : neighbours);
    },
    CenterCrop(image, {height, width}) {
      const top = Math.floor((image.height - height) / 2);
      const left = Math.floor((image.width - width) / 2);
      if (top < 0 || left < 0) refuse(image, height, width);
      const pixels = new Uint8ClampedArray(height * width * channels);
      for (let y = 0; y < height; y++) {
        const start = ((top + y) * image.width + left) * channels;
        pixels.set(image.pixels.subarray(start, start + width * channels), y * width * channels);
      }
      return {height, width, pixels};
    },
  };

  function show(canvas, probabilities) {
    element("picture").replaceWith(canvas);
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
    element("classes").replaceChildren(...order.slice(0, 5).map(place => {
      const row = document.createElement("li"), percent = document.createElement("data");
      const name = document.createElement("span"), bar = document.createElement("i");
      name.textContent = facts.classes[place];
      percent.value = probabilities[place];
      percent.textContent = `${(100 * probabilities[place]).toFixed(1)} %`;
      bar.style.backgroundSize = `${100 * probabilities[place]}% 100%`;
      row.append(name, percent, bar);
      return row;
    }));
    element("answer").hidden = false;
  }

  let model, newest = 0;
  async function answer(file) {
    const number = ++newest;
    element("answer").hidden = true;
    try {
      say(model ? "Computing …" : "Unpacking the model, once …");
      model ??= load();
      const predict = await model;
      const started = performance.now();
      let image, canvas;
      try {
        [image, canvas] = await read(file);
      } catch {
        throw new RangeError(`this browser cannot read ${file.name} as a picture`);
      }
      for (const step of facts.transforms) image = steps[step.name](image, step);
      if (image.height !== height || image.width !== width) refuse(image, height, width);
      const probabilities = await predict(image.pixels);
      // Another picture may have been chosen meanwhile.
      if (number !== newest) return;
      show(canvas, probabilities);
      say(`${file.name}: computed in your browser in ` +
          `${((performance.now() - started) / 1000).toFixed(2)} s`);
    } catch (error) {
      if (number !== newest) return;
      say(`No answer: ${error.message}. ` + (
        error instanceof RangeError ? "Try another picture." : "Reload the page to try again."));
    }
  }

  const needs = {WebAssembly: self.WebAssembly, DecompressionStream: self.DecompressionStream,
                 createImageBitmap: self.createImageBitmap};
  const missing = Object.keys(needs).filter(name => !needs[name]);
  if (missing.length) {
    say(`This browser is too old to run the model: it has no ${missing.join(", ")}.`);
  } else {
    const take = files => files?.length && answer(files[0]);
    element("drop").hidden = false;
    element("file").onchange = event => {
      take(event.target.files);
      // The same file may be chosen again.
      event.target.value = "";
    };
    addEventListener("paste", event => take(event.clipboardData.files));
    // Wherever it is dropped: the browser would leave the page for the picture.
    addEventListener("dragover", event => event.preventDefault());
    addEventListener("drop", event => {
      event.preventDefault();
      take(event.dataTransfer.files);
    });
  }
}
