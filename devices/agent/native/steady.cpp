#include "steady.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace edgewatt {
namespace {

using Values = std::vector<double>;

double squares_about_middle(std::size_t n) {
    const double middle = static_cast<double>(n - 1) / 2;
    double sum = 0;
    for (std::size_t k = 0; k < n; ++k) sum += (static_cast<double>(k) - middle) * (static_cast<double>(k) - middle);
    return sum;
}

// How much the least-squares line through equally spaced `values` changes from the first to the last of them.
double trend(const Values& values) {
    const double middle = static_cast<double>(values.size() - 1) / 2;
    double sum = 0;
    for (std::size_t k = 0; k < values.size(); ++k) sum += (static_cast<double>(k) - middle) * values[k];
    return sum / squares_about_middle(values.size()) * static_cast<double>(values.size() - 1);
}

// The standard error of `trend`, from how the values lie about that line (ordinary least squares).
double trend_noise(const Values& values) {
    const auto n = static_cast<double>(values.size());
    const double middle = (n - 1) / 2, mean = std::accumulate(values.begin(), values.end(), 0.0) / n, rise = trend(values) / (n - 1);
    double squares = 0;
    for (std::size_t k = 0; k < values.size(); ++k) squares += std::pow(values[k] - mean - rise * (static_cast<double>(k) - middle), 2);
    return (n - 1) * std::sqrt(squares / (n - 2) / squares_about_middle(values.size()));
}

template <class... Parts>
std::string worded(const char* form, Parts... parts) {
    char text[256];
    std::snprintf(text, sizeof text, form, parts...);
    return text;
}

}  // namespace

double median(Values values) {
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Steady::Steady(double tolerance, int blocks, std::vector<Node> nodes)
    : tolerance_(tolerance), blocks_(static_cast<std::size_t>(std::max(blocks, 2))), nodes_(std::move(nodes)), readings_(nodes_.size()) {}

void Steady::add(double latency_s, const std::vector<std::optional<double>>& readings) {
    all_s_.push_back(latency_s);
    if (all_s_.size() > 2 * blocks_) all_s_.pop_front();
    for (std::size_t k = 0; k < readings.size(); ++k) {
        if (!readings[k]) continue;
        readings_[k].push_back(*readings[k]);
        if (readings_[k].size() > blocks_) readings_[k].pop_front();
    }
}

Values Steady::last_s() const {
    const std::size_t n = std::min(blocks_, all_s_.size());
    return Values(all_s_.end() - static_cast<long>(n), all_s_.end());
}

double Steady::spread() const {
    const Values last = last_s();
    const double middle = median(last);
    double farthest = 0;
    for (const double v : last) farthest = std::max(farthest, std::abs(v - middle));
    return farthest / middle;
}

double Steady::drift() const { return trend(last_s()) / median(last_s()); }

std::vector<std::string> Steady::moving() const {
    std::vector<std::string> told;
    for (std::size_t k = 0; k < nodes_.size(); ++k) {
        if (readings_[k].empty()) continue;
        const auto [least, most] = std::minmax_element(readings_[k].begin(), readings_[k].end());
        if (*most - *least > nodes_[k].tolerance)
            told.push_back(nodes_[k].name + worded(" moved %.3g (limit %g)", *most - *least, nodes_[k].tolerance));
    }
    return told;
}

bool Steady::is_reached() const {
    if (last_s().size() < blocks_) return false;
    const bool is_quiet = spread() <= tolerance_ && std::abs(drift()) <= tolerance_;
    return (is_quiet || is_noise()) && moving().empty();
}

bool Steady::is_noise() const {
    if (all_s_.size() != 2 * blocks_ || all_s_.size() < 6) return false;
    const Values all(all_s_.begin(), all_s_.end());
    const double change = std::abs(trend(all));
    return 0 < change && change <= 2 * trend_noise(all);
}

std::string Steady::detail() const {
    const Values last = last_s();
    if (last.size() < blocks_) return worded("%zu of the %zu blocks needed", last.size(), blocks_);
    std::string text = worded("latency of the last %zu blocks within %.2f%% of %.4g s, changing by %+.2f%% (limit %.2f%%)", blocks_, spread() * 100, median(last), drift() * 100, tolerance_ * 100);
    for (const std::string& one : moving()) text += "; " + one;
    if (is_noise()) text += worded("; %zu blocks without a trend beyond their noise", all_s_.size());
    for (std::size_t k = 0; k < nodes_.size(); ++k)
        if (readings_[k].empty()) text += "; " + nodes_[k].name + " gave no reading";
    return text;
}

}  // namespace edgewatt
