// Files that a visitor drops, pastes or chooses, and small pictures of them.

const SUFFIXES = /\.(jpe?g|png|bmp|tiff?|webp|gif|ppm|pgm|pbm|jp2|avif)$/i;

/** Whether a file looks like an image; the service has the last word. */
export const isImage = (file) => file.type.startsWith("image/") || SUFFIXES.test(file.name);

/** Files of a drop, those in folders too, in the order of their names. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found.filter(isImage).sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
}

async function walk(entry, found) {
  if (entry.isFile) {
    found.push(await new Promise((done, fail) => entry.file(done, fail)));
    return;
  }
  const reader = entry.createReader();
  for (;;) { // a reader gives a hundred at a time
    const batch = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!batch.length) return;
    for (const child of batch) await walk(child, found);
  }
}

/** The picture as a JPEG data URI no side longer than `side`, or null where the browser cannot show it. */
export async function smallPicture(source, side) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source);
  } catch {
    return null;
  }
  const share = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * share));
  canvas.height = Math.max(1, Math.round(bitmap.height * share));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // transparency is laid on white, as the model sees it
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.86);
}

/** The content of a data URI as a file. */
export async function fileOf(uri) {
  const [head, content] = uri.split(",");
  const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}
