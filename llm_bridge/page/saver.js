// Saves what the server hands over, {name, address}, as a file.
watch("value", () => {
  const got = props.value;
  if (!got || !got.address) return;
  const link = document.createElement("a");
  link.href = got.address;
  link.download = got.name;
  link.click();
});
