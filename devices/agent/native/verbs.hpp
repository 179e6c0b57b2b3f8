// The verbs that are more than a few lines.
#pragma once

#include "agent.hpp"

namespace edgewatt {

void sample(Agent& agent, const json::Value& job);  // reads the job's nodes at a steady rate until asked to end
void run(Agent& agent, const json::Value& job);     // loads, warms up, times and saves what the job's runner does
void pulse(Agent& agent, const json::Value& job);   // keeps the processor busy and idle by turns

// What `run` can drive in this build: "onnxruntime", or nothing.
std::vector<std::string> engines();

}  // namespace edgewatt
