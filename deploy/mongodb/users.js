// The users of the stack's own MongoDB, each with the minimal role. The image runs this once, on an empty volume. Run it again (docs/deploy.md)
// after an upgrade that needs more privileges, or with a new password in .env: it then updates roles and passwords.
const name = "cml_cloud_manager";
const database = db.getSiblingDB(name);

// Checked before any user is created: such a password would break the connection strings.
for (const variable of ["MONGODB_EXPORTER_PASSWORD", "MONGODB_DEMO_PASSWORD"]) {
  const password = process.env[variable] || "";
  if (!/^[A-Za-z0-9]*$/.test(password) || (password === "" && variable === "MONGODB_EXPORTER_PASSWORD")) {
    throw new Error(`${variable} must be letters and digits only, because it stands in connection strings: change it in .env; ` +
      "if this was the first start, delete the volume (docker compose down --volumes) and start again");
  }
}

function on(collection, ...actions) {
  return { resource: { db: name, collection }, actions };
}

function user(user, password, privileges) {
  const hasRole = database.runCommand({ rolesInfo: user }).roles.length > 0;
  database.runCommand({ [hasRole ? "updateRole" : "createRole"]: user, privileges, roles: [] });
  const hasUser = database.runCommand({ usersInfo: user }).users.length > 0;
  database.runCommand({ [hasUser ? "updateUser" : "createUser"]: user, pwd: password, roles: [user] });
}

// Worker documents are only read. tests/integration/deploy/test_compose.py compares this with LEAST_PRIVILEGES in exporter/storage/privileges.py.
const exporter = [
  on("workers", "find"),
  on("cml_workers", "find"),
  on("worker_metrics_timeseries", "find", "insert", "createCollection", "createIndex", "collMod", "listIndexes", "collStats"),
  on("worker_metrics_inventory", "find", "insert", "update"),
  on("cml_exporter_state", "find", "insert", "update"),
  on("", "listCollections"),
];
user("exporter", process.env.MONGODB_EXPORTER_PASSWORD, exporter);

// The simulator of `docker compose --profile demo`, which writes worker documents and the older part of the history; without a password
// the user is not created.
if (process.env.MONGODB_DEMO_PASSWORD) {
  user("demo", process.env.MONGODB_DEMO_PASSWORD, [
    ...exporter,
    on("workers", "insert", "update"),
    on("demo_state", "find", "insert", "update"),
  ]);
}
