// The start picture of image-to-image and inpainting, with a mask painted over it. The value holds both as data URLs.
const find = (selector) => element.querySelector(selector);
const frame = find(".fs-canvas"), image = find("img"), canvas = find("canvas"), error = find(".fs-error");
const pen = canvas.getContext("2d"), input = find("input[type=file]");
let picture = null, mask = null, painted = false;

function send() {
  mask = painted ? blackAndWhite() : null;
  props.value = picture && { picture, mask };
  trigger("sent");
}

function blackAndWhite() {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  const mixer = copy.getContext("2d");
  mixer.drawImage(canvas, 0, 0);
  mixer.globalCompositeOperation = "source-in";
  mixer.fillStyle = "white";
  mixer.fillRect(0, 0, copy.width, copy.height);
  mixer.globalCompositeOperation = "destination-over";
  mixer.fillStyle = "black";
  mixer.fillRect(0, 0, copy.width, copy.height);
  return copy.toDataURL("image/png");
}

// the reverse: what is white in a mask becomes paint
async function paint(url) {
  const white = new Image();
  white.src = url;
  await white.decode();
  pen.drawImage(white, 0, 0, canvas.width, canvas.height);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height), { data } = pixels;
  for (let i = 0; i < data.length; i += 4) data.set(data[i] > 127 ? [232, 89, 12, 255] : [0, 0, 0, 0], i);
  pen.putImageData(pixels, 0, 0);
  painted = true;
}

function clear() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  painted = false;
}

async function show(url) {
  picture = url;
  frame.hidden = !url;
  if (!url) return;
  image.src = url;
  await image.decode();
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  clear();
}

input.onchange = async () => {
  const [file] = input.files;
  input.value = "";
  error.hidden = true;
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file);
    await show(scaledDown(bitmap, bitmap.width, bitmap.height, 0.95));
    send();
  } catch {
    error.textContent = `${file.name} cannot be read here; choose a JPEG, PNG or WebP file`;
    error.hidden = false;
  }
};

pen.fillStyle = pen.strokeStyle = "#e8590c";
function at(event) {
  const { left, top, width } = canvas.getBoundingClientRect(), scale = canvas.width / width;
  return [(event.clientX - left) * scale, (event.clientY - top) * scale];
}
canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  let [x, y] = at(event);
  const stroke = (now) => {
    const [nextX, nextY] = at(now);
    Object.assign(pen, { lineCap: "round", strokeStyle: "#e8590c", lineWidth: (find(".fs-brush").value / 100) * canvas.width });
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(nextX, nextY + 0.01);
    pen.stroke();
    [x, y] = [nextX, nextY];
    painted = true;
  };
  stroke(event);
  canvas.addEventListener("pointermove", stroke);
  canvas.addEventListener("pointerup", () => { canvas.removeEventListener("pointermove", stroke); send(); }, { once: true });
});
find("[data-do=clear]").onclick = () => { clear(); send(); };
find("[data-do=oval]").onclick = () => {
  if (!picture) return;
  pen.fillStyle = "#e8590c";
  pen.beginPath();
  pen.ellipse(canvas.width / 2, canvas.height / 2, canvas.width * 0.28, canvas.height * 0.36, 0, 0, 2 * Math.PI);
  pen.fill();
  painted = true;
  send();
};
async function receive() {
  const now = props.value?.picture || null, paintedOver = props.value?.mask || null;
  if (now === picture && paintedOver === mask) return;
  mask = paintedOver;
  await show(now);
  if (mask) await paint(mask);
}
watch("value", receive);
receive();
