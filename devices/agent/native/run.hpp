// What `run` asks of a runner: the items of a job, one after the other.
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <memory>

#include "agent.hpp"

namespace edgewatt {

// The starts of an item's phases, in the order they began; a runner marks each as it begins.
class Marks {
public:
    void operator()(const char* phase) {
        if (n < most) names[n] = phase, stamps_ns[n] = now_ns();
        ++n;
    }

    static constexpr std::size_t most = 16;
    std::size_t n = 0;
    std::array<const char*, most> names{};
    std::array<int64_t, most> stamps_ns{};
};

struct Setting {
    const json::Value& params;
    int64_t item_count;
    const std::vector<std::string>& item_phases;
    std::filesystem::path scratch;  // an empty folder; what is left in it when the run ends well is its result
};

class Runner {
public:
    virtual ~Runner() = default;
    virtual json::Object load() = 0;          // what it runs with, as facts; Refused if it cannot be had
    virtual void prepare(int64_t) {}          // gets an item's inputs ready, before its first mark
    virtual void run(int64_t item, Marks&) = 0;
    virtual void run_phase(const std::string& phase, int64_t item) = 0;
    virtual void keep(int64_t item) = 0;      // the outputs of the run just done go to files in the scratch folder
    virtual void save() = 0;                  // completes them
};

using Make = std::function<std::unique_ptr<Runner>(const Setting&)>;

// Makes a runner known under a name ("native:onnxruntime"); called before main by the files that have one.
bool add_runner(const char* name, Make make);

}  // namespace edgewatt
