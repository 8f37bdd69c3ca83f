"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Pictures: hover shows the other one, a click or Space stays with it, F (or the button) flickers.
  for (const figure of all("figure[data-state]")) {
    const buttons = all(".controls [data-show]", figure);
    const auto = figure.querySelector(".controls [data-auto]");
    const stage = figure.querySelector(".stage");
    let timer = null;
    const show = (state) => {
      figure.dataset.state = state;
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.show === state));
      stage.setAttribute("aria-pressed", String(state === "overlay"));
    };
    const toggle = () => show(figure.dataset.state === "overlay" ? "image" : "overlay");
    const stop = () => {
      clearInterval(timer);
      timer = null;
      delete figure.dataset.flicker;
      auto.setAttribute("aria-pressed", "false");
    };
    const flicker = () => {
      if (timer !== null) return stop();
      timer = setInterval(toggle, 700);
      figure.dataset.flicker = "";
      auto.setAttribute("aria-pressed", "true");
    };
    stage.addEventListener("click", () => { stop(); toggle(); figure.dataset.held = ""; });
    for (const move of ["mouseenter", "mouseleave"]) stage.addEventListener(move, () => { delete figure.dataset.held; });
    auto.addEventListener("click", flicker);
    for (const button of buttons) button.addEventListener("click", () => { stop(); show(button.dataset.show); });
    figure.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own, such as to find a word
      if (event.key === "f" || event.key === "F") flicker();
    });
    addEventListener("beforeprint", stop);
  }

  // Pictures that are not where the page expects them: its folder was left behind.
  const lost = document.querySelector("[data-unseen]");
  const unseen = (picture) => {
    picture.closest("figure")?.classList.add("unseen");
    if (lost) lost.hidden = false;
  };
  for (const picture of all("figure img")) {
    if (picture.complete && !picture.naturalWidth) unseen(picture);
    else picture.addEventListener("error", () => unseen(picture));
  }

  // Explanations: one bubble for all, for mouse and keyboard; without this script the browser shows the titles.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  let current = null;
  const place = (term) => {
    current = term;
    tip.textContent = term.dataset.tip;
    tip.hidden = false;
    const at = term.getBoundingClientRect();
    const left = Math.min(at.left, innerWidth - tip.offsetWidth - 16);
    const above = at.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(16, left)}px`;
    tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
    term.setAttribute("aria-describedby", "tip");
  };
  const leave = () => {
    tip.hidden = true;
    current?.removeAttribute("aria-describedby");
    current = null;
  };
  for (const term of all(".term[title]")) {
    term.dataset.tip = term.title;
    term.removeAttribute("title");
    term.addEventListener("mouseenter", () => place(term));
    term.addEventListener("focus", () => place(term));
    term.addEventListener("mouseleave", leave);
    term.addEventListener("blur", leave);
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
  addEventListener("scroll", () => { if (current) place(current); }, { passive: true, capture: true });

  // Tables: sort by a heading; cells without a number stay last.
  const key = (cell) => (cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim());
  const compare = (one, other) => {
    const [a, b] = [Number(one), Number(other)];
    if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
    return one.localeCompare(other, "en", { numeric: true });
  };
  for (const table of all("table[data-sort]")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = all("tbody tr", table).map((row) => [key(row.cells[column]), row]);
        const known = rows.filter(([value]) => value !== "" && value !== "n/a");
        known.sort((one, other) => (up ? 1 : -1) * compare(one[0], other[0]));
        const rest = rows.filter(([value]) => value === "" || value === "n/a");
        const shown = rows.length - all("tr[data-rest]", table).length;
        const open = all("tr[data-rest]", table).every((row) => !row.hidden);
        const order = [...known, ...rest];
        table.tBodies[0].append(...order.map(([, row]) => row));
        table.dispatchEvent(new Event("sorted"));
        order.forEach(([, row], place) => {
          if (shown === rows.length) return;
          row.toggleAttribute("data-rest", place >= shown); // the first of the new order are shown
          row.hidden = place >= shown && !open;
        });
      });
    });
  }

  // Tables wider than the page fade out where they go on.
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => fade(entry.target)));
  const fade = (box) => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  for (const box of all(".wide")) {
    box.addEventListener("scroll", () => fade(box), { passive: true });
    sizes.observe(box);
  }

  // The rest of a long table.
  for (const button of all("button[data-more]")) {
    button.addEventListener("click", () => {
      const rows = all("tr[data-rest]", document.getElementById(button.dataset.more));
      const open = button.getAttribute("aria-expanded") !== "true";
      for (const row of rows) row.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
      button.textContent = open ? button.dataset.less : button.dataset.all;
    });
  }

  // The filter of the group's table.
  for (const input of all("input[data-filter]")) {
    const table = document.getElementById(input.dataset.filter);
    const only = document.querySelector(`input[data-flagged="${input.dataset.filter}"]`);
    const said = document.getElementById(`${input.dataset.filter}-count`);
    const limit = Number(table.dataset.limit || Infinity); // of long tables the first rows are shown
    const texts = new Map();
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      const rows = all("tbody tr", table);
      for (const row of rows) {
        if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
        const text = texts.get(row);
        const fits = words.every((word) => text.includes(word)) && !(only?.checked && row.dataset.flagged !== "yes");
        found += fits ? 1 : 0;
        row.hidden = !fits || found > limit;
      }
      const told = found === rows.length ? "" : `${found} of ${rows.length} rows`;
      if (said) said.textContent = found > limit ? `${told || `${found} rows`}, the first ${limit} are shown` : told;
    };
    input.addEventListener("input", apply);
    only?.addEventListener("change", apply);
    if (limit < Infinity) {
      table.addEventListener("sorted", apply);
      apply();
    }
  }

  // One subject lights up everywhere.
  const light = (name, on) => {
    for (const mark of all("[data-session]")) if (mark.dataset.session === name) mark.classList.toggle("lit", on);
  };
  for (const mark of all("[data-session]")) {
    mark.addEventListener("mouseenter", () => light(mark.dataset.session, true));
    mark.addEventListener("mouseleave", () => light(mark.dataset.session, false));
    mark.addEventListener("focusin", () => light(mark.dataset.session, true));
    mark.addEventListener("focusout", () => light(mark.dataset.session, false));
  }

  // Copy the methods.
  for (const button of all("button[data-copy]")) {
    const source = document.getElementById(button.dataset.copy);
    const word = button.textContent;
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(source.value);
      } catch {
        source.hidden = false;
        source.select();
        done = document.execCommand("copy");
        source.hidden = done;
      }
      button.textContent = done ? "Copied" : "Select the text below and copy it";
      setTimeout(() => { button.textContent = word; }, 2500);
    });
  }

  // Where one is, in the list of contents.
  const links = new Map(all("nav.contents a[href^='#']").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -75% 0px" });
  for (const id of links.keys()) {
    const target = document.getElementById(id);
    if (target) watch.observe(target);
  }
})();
