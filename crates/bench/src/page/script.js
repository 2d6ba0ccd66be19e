// Tells the value of the nearest point under the pointer. The page is whole without it.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  const clear = chart => {
    tip.classList.remove("on");
    chart.querySelectorAll(".hit").forEach(mark => mark.classList.remove("hit"));
  };
  document.querySelectorAll(".chart").forEach(chart => {
    const marks = [...chart.querySelectorAll("[data-tip]")];
    chart.querySelectorAll("[data-tip] > title").forEach(title => title.remove());
    chart.addEventListener("pointerleave", () => clear(chart));
    chart.addEventListener("pointermove", event => {
      clear(chart);
      const distance = mark => {
        const box = mark.getBoundingClientRect();
        const x = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
        const y = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
        return Math.hypot(x, y);
      };
      const nearest = marks.map(mark => [distance(mark), mark]).sort((a, b) => a[0] - b[0])[0];
      if (!nearest || nearest[0] > 28) return;
      nearest[1].classList.add("hit");
      tip.textContent = nearest[1].dataset.tip;
      tip.classList.add("on");
      const room = window.innerWidth - tip.offsetWidth - 8;
      tip.style.transform = `translate(${Math.max(8, Math.min(room, event.clientX + 12))}px, ${Math.max(4, event.clientY - 38)}px)`;
    });
  });
})();
