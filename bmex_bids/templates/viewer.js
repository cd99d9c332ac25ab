// The viewer of one run: three linked planes, cut from sheets that hold all axial slices as tiles.
// Pages opened as files may draw pictures but not read their pixels, so everything here is drawing.
(() => {
  "use strict";
  const AXES = { sagittal: 0, coronal: 1, axial: 2 };
  const ENDS = { sagittal: ["P", "A", "S", "I"], coronal: ["L", "R", "S", "I"], axial: ["L", "R", "A", "P"] };
  const NAMES = { before: "BEFORE", after: "AFTER" };
  const FLICKER_MS = 700, HANDLE = 15, STEPS = [1, 1.5, 2, 3, 4, 6];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const remembered = {
    // Storage may be refused in a page opened as a file.
    get: (key) => { try { return localStorage.getItem("bmex-" + key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem("bmex-" + key, value); } catch { /* as before */ } },
  };

  function start(root) {
    const facts = JSON.parse(root.dataset.viewer);
    const comparing = Boolean(facts.files.after);
    const state = {
      at: facts.shape.map((size) => Math.floor(size / 2)),
      mode: comparing ? "swipe" : "before", flick: "before", split: 0.5, zoom: 0, big: "axial",
      overlay: "", opacity: 0.8, contours: false, cross: true,
      radiological: remembered.get("side") === "radiological",
    };
    const one = (selector) => root.querySelector(selector);
    const layers = {}; // name -> {image, cuts}; image is null while it loads
    const scratch = [document.createElement("canvas"), document.createElement("canvas")];
    let timer = 0, waiting = false;

    const views = [...root.querySelectorAll(".view")].map((element) => {
      const plane = element.dataset.plane, axis = AXES[plane];
      const [across, up] = [[1, 2], [0, 2], [0, 1]][axis];
      const slider = element.querySelector("input");
      slider.max = facts.shape[axis] - 1;
      return {
        element, plane, axis, across, up, slider, canvas: element.querySelector("canvas"),
        output: element.querySelector("output"), outline: document.createElement("canvas"), outlined: "",
      };
    });

    // ---- pictures -------------------------------------------------------------------------
    function layer(name) {
      if (!layers[name]) {
        const image = new Image(), entry = (layers[name] = { image: null, cuts: {} });
        image.onload = async () => {
          try { entry.image = await createImageBitmap(image); } catch { entry.image = image; }
          redraw();
        };
        image.onerror = () => {
          const wrong = one(".wrong");
          wrong.hidden = false;
          wrong.textContent = `The picture ${facts.files[name]} is missing; bmex with --reports-only draws it again.`;
        };
        image.src = facts.folder + facts.files[name];
      }
      return layers[name];
    }

    function release() {
      for (const name of Object.keys(layers)) {
        if (layers[name].image && layers[name].image.close) layers[name].image.close();
        delete layers[name];
      }
      for (const view of views) view.outlined = "";
    }

    // One slice of one layer as a canvas, one pixel per voxel; block: which of several sheets.
    function cut(name, view, block = 0) {
      const entry = layer(name), [width, height, count] = facts.shape, index = state.at[view.axis];
      if (!entry.image) return null;
      const key = view.plane + block;
      const found = (entry.cuts[key] = entry.cuts[key] || { canvas: document.createElement("canvas"), index: -1 });
      if (found.index === index) return found.canvas;
      const { canvas } = found;
      canvas.width = facts.shape[view.across];
      canvas.height = facts.shape[view.up];
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      const tile = (k) => [
        (k % facts.columns) * facts.pitch[0],
        Math.floor(k / facts.columns) * facts.pitch[1] + block * facts.height,
      ];
      if (view.plane === "axial") {
        context.drawImage(entry.image, ...tile(index), width, height, 0, 0, width, height);
      } else {
        for (let k = 0; k < count; k++) {
          const [left, top] = tile(k), row = count - 1 - k;
          if (view.plane === "coronal") {
            context.drawImage(entry.image, left, top + height - 1 - index, width, 1, 0, row, width, 1);
          } else { // a column of the tile becomes a row that ends with anterior
            context.setTransform(0, 1, -1, 0, height, row);
            context.drawImage(entry.image, left + index, top, 1, height, 0, 0, 1, height);
          }
        }
      }
      found.index = index;
      return canvas;
    }

    // ---- drawing --------------------------------------------------------------------------
    // Where a view's slice lies on its canvas, in the canvas's pixels.
    function frame(view) {
      const { width, height } = view.canvas, zoom = STEPS[state.zoom];
      const size = [view.across, view.up].map((axis) => facts.shape[axis]);
      const mm = [view.across, view.up].map((axis) => facts.zooms[axis]);
      const fit = Math.min(width / (size[0] * mm[0]), height / (size[1] * mm[1])) * zoom;
      const steps = mm.map((length) => length * fit);
      const flipped = state.radiological && view.plane !== "sagittal";
      const u = state.at[view.across], v = size[1] - 1 - state.at[view.up];
      const focus = [(flipped ? size[0] - 1 - u : u) + 0.5, v + 0.5];
      const [left, top] = [width, height].map((room, i) => {
        const whole = size[i] * steps[i];
        return whole <= room ? (room - whole) / 2 : clamp(room / 2 - focus[i] * steps[i], room - whole, 0);
      });
      return { left, top, width: size[0] * steps[0], height: size[1] * steps[1], steps, size, flipped, focus };
    }

    function splitAt(view, place) {
      const left = Math.max(place.left, 0), right = Math.min(place.left + place.width, view.canvas.width);
      return left + state.split * (right - left);
    }

    function paint(context, picture, place, smooth) {
      if (!picture) return;
      context.save();
      context.imageSmoothingEnabled = smooth;
      context.imageSmoothingQuality = "high";
      if (place.flipped) {
        context.translate(2 * place.left + place.width, 0);
        context.scale(-1, 1);
      }
      context.drawImage(picture, place.left, place.top, place.width, place.height);
      context.restore();
    }

    function clipped(context, from, to, height, draw) {
      context.save();
      context.beginPath();
      context.rect(from, 0, to - from, height);
      context.clip();
      draw();
      context.restore();
    }

    function shownMode() {
      return state.mode === "flicker" ? state.flick : state.mode;
    }

    function draw(view) {
      const { canvas } = view, ratio = window.devicePixelRatio || 1;
      const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((n) => Math.round(n * ratio));
      if (!width || !height) return;
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      const context = canvas.getContext("2d"), place = frame(view), mode = shownMode();
      context.clearRect(0, 0, width, height);
      if (mode === "swipe") {
        const x = splitAt(view, place);
        clipped(context, 0, x, height, () => paint(context, cut("before", view), place, true));
        clipped(context, x, width, height, () => paint(context, cut("after", view), place, true));
      } else {
        paint(context, cut(mode, view), place, true);
      }
      if (state.overlay) {
        context.globalAlpha = state.opacity;
        paint(context, cut(state.overlay, view), place, true);
        context.globalAlpha = 1;
      }
      if (state.contours) outlines(context, view, place);
      if (state.cross) crossHair(context, view, place, ratio);
      if (mode === "swipe") divider(context, splitAt(view, place), height, ratio);
      words(context, view, place, mode, ratio);
      describe(view, mode);
    }

    // Borders of the masks, drawn on the canvas's own pixels: a mask less its shrunken self.
    function outlines(context, view, place) {
      const { width, height } = view.canvas, thick = Math.max(1, Math.round(width / 620));
      const key = [state.at[view.axis], place.left, place.top, place.width, place.flipped, width, height].join();
      if (view.outlined !== key) {
        const parts = facts.outlines.map((_, block) => cut("masks", view, block));
        if (parts.includes(null)) return;
        // A rim around the canvas, so that what goes on beyond it does not end in a line.
        const room = { width: width + 2 * thick, height: height + 2 * thick };
        const shifted = { ...place, left: place.left + thick, top: place.top + thick };
        const [whole, core] = scratch.map((item) => Object.assign(item, room).getContext("2d"));
        const target = Object.assign(view.outline, { width, height }).getContext("2d");
        parts.forEach((part, block) => {
          for (const surface of [whole, core]) {
            surface.globalCompositeOperation = "source-over";
            surface.clearRect(0, 0, room.width, room.height);
            paint(surface, part, shifted, false);
          }
          core.globalCompositeOperation = "destination-in";
          for (const [x, y] of [[thick, 0], [-thick, 0], [0, thick], [0, -thick]]) core.drawImage(whole.canvas, x, y);
          whole.globalCompositeOperation = "destination-out";
          whole.drawImage(core.canvas, 0, 0);
          whole.globalCompositeOperation = "source-in";
          whole.fillStyle = facts.outlines[block].colour;
          whole.fillRect(0, 0, room.width, room.height);
          target.drawImage(whole.canvas, -thick, -thick);
        });
        view.outlined = key;
      }
      context.drawImage(view.outline, 0, 0);
    }

    function crossHair(context, view, place, ratio) {
      const x = place.left + place.focus[0] * place.steps[0], y = place.top + place.focus[1] * place.steps[1];
      const gap = 9 * ratio, { width, height } = view.canvas;
      context.strokeStyle = "rgba(120, 220, 130, .75)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
        context.moveTo(a, b);
        context.lineTo(c, d);
      }
      context.stroke();
    }

    function divider(context, x, height, ratio) {
      const y = height * 0.84, size = 11 * ratio; // clear of the middle, where the cross-hair starts
      context.fillStyle = "#fff";
      context.fillRect(x - ratio, 0, 2 * ratio, height);
      context.beginPath();
      context.arc(x, y, size, 0, 2 * Math.PI);
      context.fill();
      context.fillStyle = "#0b5c8a";
      for (const side of [-1, 1]) {
        context.beginPath();
        context.moveTo(x + side * size * 0.75, y);
        context.lineTo(x + side * size * 0.2, y - size * 0.42);
        context.lineTo(x + side * size * 0.2, y + size * 0.42);
        context.fill();
      }
    }

    function words(context, view, place, mode, ratio) {
      const { width, height } = view.canvas, pad = 7 * ratio, size = 14 * ratio;
      const write = (text, x, y, align, colour = "#b8d8ff") => {
        context.textAlign = align;
        context.lineWidth = 3 * ratio;
        context.strokeStyle = "#000";
        context.strokeText(text, x, y);
        context.fillStyle = colour;
        context.fillText(text, x, y);
      };
      context.font = `700 ${size}px system-ui, "Liberation Sans", sans-serif`;
      context.textBaseline = "middle";
      context.lineJoin = "round";
      const ends = ENDS[view.plane];
      const left = Math.max(place.left, 0) + pad, right = Math.min(place.left + place.width, width) - pad;
      const middle = height / 2;
      write(ends[place.flipped ? 1 : 0], left, middle, "left");
      write(ends[place.flipped ? 0 : 1], right, middle, "right");
      const centre = (left + right) / 2 + (mode === "swipe" ? 24 * ratio : 0);
      write(ends[2], centre, Math.max(place.top, 0) + size * 0.9, "center");
      write(ends[3], centre, Math.min(place.top + place.height, height) - size * 0.9, "center");
      if (!comparing) return;
      const y = size * 0.9 + 2 * ratio, x = splitAt(view, place);
      const room = 76 * ratio; // the words leave where the line comes near
      if (mode !== "swipe") write(NAMES[mode], pad, y, "left", "#ffffff");
      else {
        if (x > room) write(NAMES.before, pad, y, "left", "#ffffff");
        const end = width - (view.element.classList.contains("big") ? pad : 44 * ratio);
        if (end - x > room * 0.85) write(NAMES.after, end, y, "right", "#ffffff");
      }
    }

    function millimetres() {
      return facts.affine.map((row) => row[0] * state.at[0] + row[1] * state.at[1] + row[2] * state.at[2] + row[3]);
    }

    function describe(view, mode) {
      const text = `${"xyz"[view.axis]} = ${millimetres()[view.axis].toFixed(0).replace("-", "\u2212")} mm`;
      view.output.textContent = text;
      view.slider.value = state.at[view.axis];
      view.slider.setAttribute("aria-valuetext", text);
      const shown = { before: "before", after: "after", swipe: "before on the left, after on the right" }[mode];
      const side = view.plane === "sagittal" ? "" : `, ${state.radiological ? "radiological" : "neurological"} convention`;
      view.canvas.setAttribute("aria-label", `${view.plane} slice, ${text}${comparing ? ", " + shown : ""}${side}`);
      view.canvas.dataset.drawn = [mode, state.at[view.axis], state.overlay].join();
    }

    function redraw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; views.forEach(draw); });
    }

    // ---- state ----------------------------------------------------------------------------
    function show() {
      const small = views.filter((view) => view.plane !== state.big);
      for (const view of views) {
        view.element.classList.remove("big", "one", "two");
        view.element.classList.add(view.plane === state.big ? "big" : view === small[0] ? "one" : "two");
      }
      for (const button of root.querySelectorAll("[data-mode]")) {
        button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
      }
      one("[data-side]").setAttribute("aria-pressed", state.radiological);
      for (const box of root.querySelectorAll("[data-switch]")) box.checked = state[box.dataset.switch];
      if (one("[data-overlay]")) one("[data-overlay]").value = state.overlay;
      legend();
      clearInterval(timer);
      if (state.mode === "flicker") {
        timer = setInterval(() => { state.flick = state.flick === "before" ? "after" : "before"; redraw(); }, FLICKER_MS);
      }
      redraw();
    }

    function legend() {
      const key = one(".key");
      const make = (name, parent, text = "") => {
        const element = parent.appendChild(document.createElement(name));
        element.textContent = text;
        return element;
      };
      key.textContent = "";
      const overlay = facts.overlays.find((item) => item.layer === state.overlay);
      if (overlay) {
        const box = make("span", key), ramp = make("span", box), ticks = make("span", box);
        box.className = "colours";
        ramp.className = "ramp";
        ramp.style.background = `linear-gradient(to right, ${overlay.colours.join()}), #555`;
        ticks.className = "ticks";
        for (const tick of overlay.ticks) make("span", ticks, tick);
        const signed = overlay.ticks[0].startsWith("-");
        make("span", key, overlay.unit + (signed ? "; red became brighter, blue darker" : ""));
      }
      if (state.contours) {
        for (const item of facts.outlines) {
          const entry = make("span", key);
          make("i", entry).style.background = item.colour;
          entry.append(`border of ${item.title}`);
        }
      }
      if (!overlay && !state.contours) {
        make("span", key, `One intensity window for all: ${facts.window.join(" to ")} in the input's units.`);
      }
    }

    const set = (change) => { Object.assign(state, change); show(); };
    function move(axis, index) {
      state.at[axis] = clamp(Math.round(index), 0, facts.shape[axis] - 1);
      redraw();
    }
    const bigAxis = () => AXES[state.big];
    const otherImage = () => (shownMode() === "before" ? "after" : "before");
    function zoomBy(step) {
      state.zoom = clamp(state.zoom + step, 0, STEPS.length - 1);
      redraw();
    }
    function setSide(radiological) {
      remembered.set("side", radiological ? "radiological" : "neurological");
      set({ radiological });
    }

    // ---- hands ----------------------------------------------------------------------------
    for (const view of views) {
      const { canvas } = view;
      let drag = "", from = [0, 0];
      const point = (event) => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top].map((n) => n * (canvas.width / box.width));
      };
      const nearLine = (x) => {
        const reach = HANDLE * (canvas.width / canvas.clientWidth);
        return state.mode === "swipe" && Math.abs(x - splitAt(view, frame(view))) < reach;
      };
      const act = (event) => {
        const [x, y] = point(event), place = frame(view);
        if (drag === "line") {
          const left = Math.max(place.left, 0), right = Math.min(place.left + place.width, canvas.width);
          state.split = clamp((x - left) / (right - left), 0, 1);
          redraw();
        } else if (drag === "cross") {
          const u = Math.floor((x - place.left) / place.steps[0]), v = Math.floor((y - place.top) / place.steps[1]);
          move(view.across, place.flipped ? place.size[0] - 1 - u : u);
          move(view.up, place.size[1] - 1 - v);
        }
      };
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        from = point(event);
        // A finger scrolls the page up and down; sideways it swipes, and a tap sets the cross-hair.
        const finger = event.pointerType === "touch";
        drag = nearLine(from[0]) || (finger && state.mode === "swipe") ? "line" : "cross";
        root.focus({ preventScroll: true });
        canvas.setPointerCapture(event.pointerId);
        if (!finger && drag === "cross") act(event);
      });
      canvas.addEventListener("pointermove", (event) => {
        canvas.classList.toggle("divides", drag === "line" || (!drag && nearLine(point(event)[0])));
        if (drag) act(event);
      });
      canvas.addEventListener("pointerup", (event) => {
        const [x, y] = point(event);
        const tap = event.pointerType === "touch" && Math.hypot(x - from[0], y - from[1]) < 8 * (window.devicePixelRatio || 1);
        if (tap) { drag = "cross"; act(event); }
        drag = "";
      });
      canvas.addEventListener("pointercancel", () => { drag = ""; });
      canvas.addEventListener("dblclick", () => set({ big: view.plane }));
      let turned = 0;
      canvas.addEventListener("wheel", (event) => {
        if (!root.contains(document.activeElement) || event.ctrlKey) return; // the page scrolls
        event.preventDefault();
        turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
        const slices = Math.trunc(turned / 40);
        turned -= slices * 40;
        if (slices) move(view.axis, state.at[view.axis] - clamp(slices, -3, 3));
      }, { passive: false });
      view.slider.addEventListener("input", () => move(view.axis, Number(view.slider.value)));
      view.element.querySelector(".enlarge").addEventListener("click", () => set({ big: view.plane }));
    }
    for (const button of root.querySelectorAll("[data-mode]")) {
      button.addEventListener("click", () => set({ mode: button.dataset.mode }));
    }
    for (const button of root.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom)));
    }
    for (const box of root.querySelectorAll("[data-switch]")) {
      box.addEventListener("change", () => set({ [box.dataset.switch]: box.checked }));
    }
    if (facts.overlays.length) {
      one("[data-overlay]").addEventListener("change", (event) => set({ overlay: event.target.value }));
      one("[data-opacity]").addEventListener("input", (event) => {
        state.opacity = event.target.value / 100;
        redraw();
      });
    }
    one("[data-side]").addEventListener("click", () => setSide(!state.radiological));
    if (root.requestFullscreen) {
      one("[data-full]").addEventListener("click", () => {
        if (document.fullscreenElement) document.exitFullscreen();
        else root.requestFullscreen();
      });
    } else one("[data-full]").hidden = true;
    root.addEventListener("click", (event) => {
      // After a mouse click the keys belong to the viewer again, not to the button.
      if (event.detail && event.target.closest("button")) root.focus({ preventScroll: true });
    });

    const overlayKey = (name) => () => {
      if (facts.files[name]) set({ overlay: state.overlay === name ? "" : name });
    };
    const line = (step) => () => {
      if (state.mode !== "swipe") return false;
      state.split = clamp(state.split + step, 0, 1);
      redraw();
    };
    const keys = {
      ArrowUp: () => move(bigAxis(), state.at[bigAxis()] + 1),
      ArrowDown: () => move(bigAxis(), state.at[bigAxis()] - 1),
      PageUp: () => move(bigAxis(), state.at[bigAxis()] + 10),
      PageDown: () => move(bigAxis(), state.at[bigAxis()] - 10),
      ArrowLeft: line(-0.02), ArrowRight: line(0.02),
      " ": () => (comparing ? set({ mode: otherImage() }) : false),
      s: () => (comparing ? set({ mode: "swipe" }) : false),
      f: () => (comparing ? set({ mode: state.mode === "flicker" ? "after" : "flicker" }) : false),
      r: overlayKey("residual"), u: overlayKey("uncertainty"),
      c: () => set({ contours: !state.contours }), x: () => set({ cross: !state.cross }),
      l: () => setSide(!state.radiological),
      "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1),
      1: () => set({ big: "axial" }), 2: () => set({ big: "coronal" }), 3: () => set({ big: "sagittal" }),
    };
    root.addEventListener("keydown", (event) => {
      const inControl = event.target.closest("input, select, button");
      if (inControl || event.ctrlKey || event.metaKey || event.altKey) return;
      const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (action && action() !== false) event.preventDefault();
    });

    // ---- life -----------------------------------------------------------------------------
    root.hidden = false;
    new ResizeObserver(redraw).observe(root);
    // Sheets of runs that are far from the screen are let go, so that many runs fit into memory.
    new IntersectionObserver(([entry]) => {
      if (entry.isIntersecting) show();
      else { clearInterval(timer); release(); }
    }, { rootMargin: "100% 0px" }).observe(root);
  }

  if ("ResizeObserver" in window && "IntersectionObserver" in window) {
    document.querySelectorAll(".viewer").forEach(start);
    document.documentElement.classList.add("scripted"); // the still pictures give way
  }
})();
