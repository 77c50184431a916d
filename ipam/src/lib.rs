//! Node subnets and pod addresses.
