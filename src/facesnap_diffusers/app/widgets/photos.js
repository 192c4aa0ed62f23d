// A field for photos: from a file, the camera, the clipboard, or a sample person. They travel as data URLs.
const find = (selector) => element.querySelector(selector);
const thumbs = find(".fs-thumbs"), error = find(".fs-error"), camera = find(".fs-camera"), video = find("video");
const input = find("input[type=file]"), samples = find(".fs-samples");
let photos = [], sample = null, stream = null;
input.multiple = options.max > 1;

function complain(text) {
  error.textContent = text;
  error.hidden = !text;
}

async function add(files) {
  complain("");
  const added = [];
  for (const file of files) {
    try {
      const bitmap = await createImageBitmap(file);
      added.push(scaledDown(bitmap, bitmap.width, bitmap.height, 0.92));
      bitmap.close();
    } catch {
      complain(`${file.name || "the picture"} cannot be read here; choose a JPEG, PNG or WebP file`);
    }
  }
  if (added.length) take(added);
}

function take(added) {
  const all = options.max > 1 ? [...photos, ...added] : added;
  if (all.length > options.max) complain(`up to ${options.max} photos of one person; the first ${options.max} are kept`);
  photos = all.slice(0, options.max);
  sample = null;
  send();
}

function send() {
  draw();
  props.value = { photos, sample };
  trigger("sent");
}

function draw() {
  thumbs.replaceChildren(...photos.map((photo, i) => {
    const item = document.createElement("li"), picture = document.createElement("img"), remove = document.createElement("button");
    picture.src = photo;
    picture.alt = `photo ${i + 1}`;
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove photo ${i + 1}`);
    remove.onclick = () => { photos = photos.filter((_, j) => j !== i); send(); };
    item.append(picture, remove);
    return item;
  }));
  for (const button of samples.children) button.setAttribute("aria-pressed", String(button.dataset.name === sample));
}

samples.replaceChildren(...(options.samples || []).map(({ name, picture }, i) => {
  const button = document.createElement("button"), image = document.createElement("img");
  button.type = "button";
  button.dataset.name = name;
  button.setAttribute("aria-label", `Sample person ${i + 1}`);
  image.src = picture;
  image.alt = "";
  button.append(image);
  button.onclick = () => { complain(""); photos = []; sample = name; send(); };
  return button;
}));

function stop() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  stream = null;
  camera.hidden = true;
}

const actions = {
  async camera() {
    complain("");
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
      video.srcObject = stream;
      camera.hidden = false;
      await video.play();
    } catch {
      complain("the camera could not be opened; allow it for this page (which needs https), or choose a file");
    }
  },
  shoot() {
    const photo = scaledDown(video, video.videoWidth, video.videoHeight, 0.92);
    stop();
    take([photo]);
  },
  stop,
  async paste() {
    complain("");
    try {
      const files = [];
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((type) => type.startsWith("image/"));
        if (type) files.push(await item.getType(type));
      }
      if (files.length) await add(files);
      else complain("the clipboard holds no picture; copy one first");
    } catch {
      complain("the clipboard could not be read; click here and press Ctrl+V, or choose a file");
    }
  },
};
for (const button of element.querySelectorAll("[data-do]")) button.onclick = () => actions[button.dataset.do]();
input.onchange = () => { add([...input.files]); input.value = ""; };

const picturesOf = (transfer) => [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/"));
element.addEventListener("paste", (event) => {
  const files = picturesOf(event.clipboardData);
  if (files.length) { event.preventDefault(); add(files); }
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => { event.preventDefault(); add(picturesOf(event.dataTransfer)); });

function receive() {
  photos = props.value?.photos || [];
  sample = props.value?.sample || null;
  draw();
}
watch("value", receive);
receive();
