// The verb `pulse`: the processor busy and idle by turns, a mark that any meter of the device's power can see.
#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "verbs.hpp"

namespace edgewatt {
namespace {

constexpr double most_s = 3600;
constexpr int64_t most_workers = 1024;

struct Step {
    int64_t length_ns;
    int64_t workers;
};

// How many processors the agent may use.
int64_t processors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max<int64_t>(1, sysconf(_SC_NPROCESSORS_ONLN));
}

std::vector<Step> steps_of(const json::Value& job) {
    const json::Value& steps = job["steps"];
    if (!steps.is(json::Value::Kind::list) || steps.items.empty())
        throw Refused("job: steps is " + json::shown(steps) + "; wanted a list of [seconds, workers]");
    std::vector<Step> found;
    for (const json::Value& step : steps.items) {
        const auto& pair = step.items;
        if (!step.is(json::Value::Kind::list) || pair.size() != 2 || !pair[0].is_number() || !pair[1].is(json::Value::Kind::integer))
            throw Refused("job: a step is " + json::shown(step) + "; wanted [seconds, workers]");
        const int64_t workers = pair[1].integer;
        if (!(pair[0].real > 0 && pair[0].real <= most_s) || workers < -1 || workers > most_workers)
            throw Refused("job: a step is " + json::shown(step) + "; wanted 0 to 3600 seconds, -1 to 1024 workers");
        found.push_back({ns(pair[0].real), workers == -1 ? processors() : workers});
    }
    return found;
}

// Where a thread really began and stopped.
struct Stamps {
    int64_t begin = 0, end = 0;
};

void be_busy(const Agent& agent, int64_t until, Stamps& stamps) {
    int64_t now = stamps.begin = now_ns();
    while (now < until && !agent.stopping()) now = now_ns();
    stamps.end = now;
}

}  // namespace

void pulse(Agent& agent, const json::Value& job) {
    const std::vector<Step> steps = steps_of(job);
    int64_t end = now_ns();
    for (const Step& step : steps) {
        end += step.length_ns;
        std::vector<Stamps> stamps(static_cast<std::size_t>(step.workers));
        std::vector<std::thread> crowd;
        for (Stamps& mine : stamps) crowd.push_back(started([&agent, &mine, end] { be_busy(agent, end, mine); }));
        agent.sleep_until(end);
        for (std::thread& worker : crowd) worker.join();
        if (agent.look()) return;
        if (stamps.empty()) continue;
        int64_t begin_late = 0, end_late = 0;  // as differences: a sum of stamps does not fit into 64 bits
        for (const Stamps& one : stamps) {
            begin_late += one.begin - stamps[0].begin;
            end_late += one.end - stamps[0].end;
        }
        json::Object phase("phase");
        phase.add("phase", "pulse").add("start_ns", stamps[0].begin + begin_late / step.workers);
        phase.add("end_ns", stamps[0].end + end_late / step.workers).add("items", step.workers).add("repeat", 0);
        agent.emit(phase);
    }
}

}  // namespace edgewatt
