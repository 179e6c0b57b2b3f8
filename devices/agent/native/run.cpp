#include "verbs.hpp"
namespace edgewatt {
void run(Agent&, const json::Value&) { throw Refused("no run in this build"); }
std::vector<std::string> engines() { return {}; }
}
