/* Browsers start no worker for a page that is read from a file, and the search is one. A frame takes its place: its script has the
   same two ways to talk, `postMessage` out and `message` in. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.onmessage = null;
      this.onerror = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      const tell = (data) => this.say("message", new MessageEvent("message", { data: structuredClone(data) }));
      inside.postMessage = (data) => setTimeout(tell, 0, data);
      const script = inside.document.createElement("script");
      this.ready = new Promise((done) => (script.onload = done));
      script.onerror = () => this.say("error", new ErrorEvent("error", { message: `${address} cannot be read` }));
      script.src = new URL(address, location.href).href;
      inside.document.body.append(script);
    }

    say(kind, event) {
      this.dispatchEvent(event);
      const heard = this[`on${kind}`];
      if (heard) heard.call(this, event);
    }

    postMessage(data) {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      this.ready.then(() => this.frame.contentWindow?.dispatchEvent(event));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
