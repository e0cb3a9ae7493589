// Fills the page: three NiiVue panels that share cross-hair and window, the third one computed here.
"use strict";
(() => {
  const HEADER_BYTES = 352; // of the NIfTI files that views.py writes; int16 follows
  const MAX_ZOOM = 16;
  const LINE_PX = 1.5; // of the cross-hair: never less than a pixel, however large or small the volume
  const NAMES = ["original", "reconstruction", "difference"];
  const content = JSON.parse(document.getElementById("content").textContent);
  const title = document.title.replace(/^loading: /, "");
  const [lowHU, highHU] = content.window_hu;
  const at = (id) => document.getElementById(id);
  const state = { panels: [], voxels: [], shape: [], shown: -1, range: 200 };
  window.viewer = state; // what tests look at

  const spoken = (hu) => (hu > 0 ? "+" : hu < 0 ? "\u2212" : "") + Math.abs(hu);
  const plain = (hu) => (hu < 0 ? "\u2212" : "") + Math.abs(hu) + " HU";
  const clipped = (hu) => Math.min(Math.max(hu, lowHU), highHU);

  function fail(error) {
    at("trouble").textContent = `The volumes cannot be shown: ${error && error.message ? error.message : error}`;
    document.title = `failed: ${title}`;
  }

  async function read(source) {
    if (source.url !== undefined) {
      const answer = await fetch(source.url);
      if (!answer.ok) throw new Error(await answer.text());
      return answer.arrayBuffer();
    }
    const text = atob(at(source.block).textContent);
    const packed = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) packed[n] = text.charCodeAt(n);
    const opened = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(opened).arrayBuffer();
  }

  function differ(original, recon) {
    const result = original.slice(0);
    const [old, made, difference] = [original, recon, result].map((one) => new Int16Array(one, HEADER_BYTES));
    for (let n = 0; n < old.length; n++) difference[n] = Math.round(clipped(made[n]) - clipped(old[n]));
    return result;
  }

  async function show(index) {
    document.title = `loading: ${title}`;
    const view = content.views[index];
    const buffers = await Promise.all([read(view.original), read(view.reconstruction)]);
    buffers.push(differ(...buffers));
    state.shape = Array.from(new Int16Array(buffers[0].slice(42, 48)));
    for (const [n, panel] of state.panels.entries()) {
      while (panel.volumes.length) panel.removeVolume(panel.volumes[0]);
      state.voxels[n] = new Int16Array(buffers[n], HEADER_BYTES);
      await panel.loadFromArrayBuffer(buffers[n], `${NAMES[n]}.nii`);
      panel.volumes[0].colormap = n < 2 ? "gray" : "difference";
    }
    state.shown = index;
    at("place").replaceChildren(new Option("\u2013", ""), ...view.places.map((one, n) => new Option(one.name, n)));
    at("jumps").hidden = view.places.length === 0;
    setWindow();
    goTo(view.places.length ? view.places[0].voxel : state.shape.map((size) => Math.floor(size / 2)));
    at("place").value = view.places.length ? "0" : "";
    document.title = `ready: ${title}`;
  }

  // One at a time: two that load at once would leave panels that show volumes of different views.
  let showing = Promise.resolve();
  function showNext(index) {
    showing = showing.then(() => (Number(at("view").value) === index ? show(index) : undefined)).catch(fail);
    return showing;
  }

  function setWindow() {
    const level = Number(at("level").value), width = Math.max(Number(at("width").value), 1);
    for (const [n, panel] of state.panels.entries()) {
      if (!panel.volumes.length) continue;
      panel.volumes[0].cal_min = n < 2 ? level - width / 2 : -state.range;
      panel.volumes[0].cal_max = n < 2 ? level + width / 2 : state.range;
      panel.updateGLVolume();
    }
    for (const button of at("presets").children) {
      const preset = content.presets[Number(button.dataset.preset)];
      button.setAttribute("aria-pressed", preset.level === level && preset.width === width);
    }
    at("scale-low").textContent = spoken(-state.range);
    at("scale-high").textContent = spoken(state.range);
  }

  function choose(preset) {
    at("level").value = preset.level;
    at("width").value = preset.width;
    setWindow();
  }

  function goTo(voxel) {
    for (const panel of state.panels) {
      panel.scene.crosshairPos = panel.vox2frac(voxel);
      panel.drawScene();
    }
    tellWhere(state.panels[0]);
  }

  function tellWhere(panel) {
    if (!panel.volumes.length || state.voxels.length < 3) return;
    const [x, y, z] = panel.frac2vox(panel.scene.crosshairPos);
    const [nx, ny, nz] = state.shape;
    if (x < 0 || y < 0 || z < 0 || x >= nx || y >= ny || z >= nz) return;
    const values = state.voxels.map((voxels) => voxels[x + nx * (y + ny * z)]);
    state.at = { voxel: [x, y, z], values };
    at("value-0").textContent = plain(values[0]);
    at("value-1").textContent = plain(values[1]);
    at("value-2").textContent = `${spoken(values[2])} HU`;
    const mm = panel.frac2mm(panel.scene.crosshairPos);
    const sides = [["R", "L"], ["A", "P"], ["S", "I"]];
    const places = sides.map((pair, n) => `${pair[mm[n] < 0 ? 1 : 0]} ${Math.abs(mm[n]).toFixed(1)}`);
    at("where").textContent = `Voxel ${x}, ${y}, ${z} of ${nx} x ${ny} x ${nz}; ${places.join(", ")} mm`;
  }

  function setPlane(plane) {
    for (const panel of state.panels) panel.setSliceType(plane);
    for (const button of at("planes").children) {
      button.setAttribute("aria-pressed", Number(button.dataset.plane) === plane);
    }
  }

  // Zooms all three, so that the cross-hair stays where it is; a factor of 0 shows all again.
  function zoom(panel, factor) {
    const [x, y, z, old] = panel.scene.pan2Dxyzmm;
    const scale = Math.min(Math.max(old * factor, 1), MAX_ZOOM);
    const mm = panel.frac2mm(panel.scene.crosshairPos);
    const moved = [x, y, z].map((one, n) => one + (old - scale) * mm[n]);
    for (const one of state.panels) one.setPan2Dxyzmm(scale === 1 ? [0, 0, 0, 1] : [...moved, scale]);
  }

  // NiiVue would zoom one panel only, and set a window of its own on a double click.
  function takeGestures(panel, element) {
    const wheel = (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      event.stopPropagation();
      zoom(panel, event.deltaY < 0 ? 1.15 : 1 / 1.15);
    };
    const twice = (event) => {
      event.stopPropagation();
      zoom(panel, 0);
    };
    element.addEventListener("wheel", wheel, { capture: true, passive: false });
    element.addEventListener("dblclick", twice, { capture: true });
  }

  // NiiVue takes the line's width in mm; in a small box, or in one that is shown small, that is less than a pixel.
  function drawThinLines(panel) {
    const draw = panel.drawCrosshairs3D.bind(panel);
    panel.drawCrosshairs3D = (...how) => {
      const tile = panel.screenSlices[panel.screenSlices.length - 1];
      const perPixel = Math.abs(tile.fovMM[0]) / Math.abs(tile.leftTopWidthHeight[2]);
      const width = LINE_PX * (window.devicePixelRatio || 1) * perPixel;
      if (width !== panel.opts.crosshairWidth && panel.crosshairs3D) panel.crosshairs3D.mm = [NaN, NaN, NaN];
      panel.opts.crosshairWidth = width;
      return draw(...how);
    };
  }

  function differenceColours() {
    const stops = content.difference_colours;
    const map = { R: [], G: [], B: [], A: [], I: [] };
    stops.forEach(([red, green, blue], n) => {
      map.R.push(red);
      map.G.push(green);
      map.B.push(blue);
      map.A.push(255);
      map.I.push(Math.round((255 * n) / (stops.length - 1)));
    });
    return map;
  }

  async function start() {
    const canvas = document.createElement("canvas");
    if (!canvas.getContext("webgl2")) throw new Error("this browser has no WebGL 2; take a newer one");
    for (const n of [0, 1, 2]) {
      const panel = new niivue.Niivue({
        backColor: [0, 0, 0, 1],
        crosshairColor: [0.25, 0.9, 0.45, 0.8],
        crosshairWidthUnit: "mm",
        crosshairGap: 8, // in half widths, so that the voxel in the middle stays visible
        dragAndDropEnabled: false,
        dragMode: 0, // the wheel turns slices; with 3 it would zoom
        mouseEventConfig: { leftButton: { primary: 8 }, rightButton: 3, centerButton: 3 },
        viewModeHotKey: "",
        clipPlaneHotKey: "",
        cycleClipPlaneHotKey: "",
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        isNearestInterpolation: true,
        multiplanarShowRender: 0,
        multiplanarLayout: 2,
        loadingText: "loading",
        logLevel: "error",
      });
      await panel.attachToCanvas(at(`panel-${n}`));
      takeGestures(panel, at(`panel-${n}`).parentElement);
      drawThinLines(panel);
      panel.addColormap("difference", differenceColours());
      panel.onLocationChange = () => tellWhere(panel);
      state.panels.push(panel);
    }
    for (const panel of state.panels) {
      panel.broadcastTo(state.panels.filter((other) => other !== panel), { "2d": true, "3d": false });
    }
    content.views.forEach((view, n) => at("view").append(new Option(view.name, n)));
    content.presets.forEach((preset, n) => {
      const button = document.createElement("button");
      button.textContent = preset.name;
      button.title = `level ${preset.level}, width ${preset.width} HU`;
      button.dataset.preset = n;
      button.id = `preset-${preset.id}`;
      button.addEventListener("click", () => choose(preset));
      at("presets").append(button);
    });
    const colours = content.difference_colours.map((colour) => `rgb(${colour.join(",")})`);
    document.querySelector("#scale i").style.background = `linear-gradient(to right, ${colours.join(",")})`;
    at("window").textContent = `${plain(lowHU)} to ${plain(highHU)}`;
    at("view").addEventListener("change", () => showNext(Number(at("view").value)));
    at("place").addEventListener("change", () => {
      if (at("place").value !== "") goTo(content.views[state.shown].places[Number(at("place").value)].voxel);
    });
    at("range").addEventListener("change", () => {
      state.range = Number(at("range").value);
      setWindow();
    });
    for (const id of ["level", "width"]) at(id).addEventListener("change", setWindow);
    for (const button of at("planes").children) {
      button.addEventListener("click", () => setPlane(Number(button.dataset.plane)));
    }
    setPlane(0);
    choose(content.presets.find((preset) => preset.id === "mediastinum"));
    await showNext(0);
  }

  start().catch(fail);
})();
