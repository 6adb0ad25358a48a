// What Jupyter calls: the page in the cell's element, and its state sent back and forth.
import { mount } from "./page.js";

export default { render({ model, el }) {
  el.classList.add("in-notebook");
  const explorer = mount(el, model.get("view"), (state) => { model.set("state", structuredClone(state)); model.save_changes(); });
  const take = () => { if (JSON.stringify(model.get("state")) !== JSON.stringify(explorer.state)) explorer.restore(model.get("state")); };
  if (Object.keys(model.get("state")).length) take();
  model.on("change:state", take);
} };
