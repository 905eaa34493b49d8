package Serai::Watch;

# Whether a site's code is to be loaded anew: tmp/restart.txt beneath its root
# was touched or, for a site with reload: change, a file of its code was changed.
# The main process looks once a second, at what costs a stat each, and says
# `reload` on the status socket; what comes of that is not its business.
#
# Not by inotify: all tenants share 128 instances (docs/decisions/0012-reload.md).

use v5.36;
use Socket qw(MSG_DONTWAIT MSG_NOSIGNAL);
use Time::HiRes ();

use constant TOUCHED => 'tmp/restart.txt';

our $current;    # of this process

# new is called before the code is loaded: what is touched meanwhile counts.
sub new ($class, $site) {
    my $w = bless {
        status => $site->{status}, place => $site->{place}, root => $site->{root}, home => $site->{home},
        files => [grep { defined } @$site{qw(app startup)}], inc => $site->{inc},
        change => ($site->{reload} // '') eq 'change', looked => time, known => -1,
    }, $class;
    $w->{touch} = mark("$w->{place}/" . TOUCHED);
    return $w;
}

# look says `reload` if there is a reason. It is called when `looked` is not the
# present second.
sub look ($w) {
    local $!;
    $w->{looked} = time;
    my $touch = mark("$w->{place}/" . TOUCHED);
    if ($touch ne $w->{touch}) {
        $w->{touch} = $touch;
        $w->tell if length $touch;
    }
    return if !$w->{change};
    my $print = $w->{paths} && $w->print_of_code;
    if (($print // '') ne ($w->{print} // '')) { @$w{qw(print unrest)} = ($print, 1) }    # more may follow
    elsif (delete $w->{unrest}) { $w->tell }
    $w->follow if keys %INC != $w->{known};
}

sub tell ($w) { send $w->{status}, 'reload', MSG_DONTWAIT | MSG_NOSIGNAL }

# follow takes note of all that was loaded from the home, and of the directories
# it was in: code that was not loaded yet may be what is mended.
sub follow ($w) {
    $w->{known} = keys %INC;
    my @files = map { m{\A/} ? $_ : "$w->{root}/$_" } grep { defined && !ref } values %INC;
    @files = grep { index($_, "$w->{home}/") == 0 } @files;
    my %dir = map { s{/[^/]*\z}{}r => 1 } @files;
    $dir{ m{\A/} ? $_ : "$w->{root}/$_" } = 1 for @{ $w->{inc} };
    $w->{paths} = [(map { "$w->{place}/$_" } @{ $w->{files} }), @files];
    $w->{dirs} = [sort keys %dir];
    $w->{print} = $w->print_of_code;
}

sub print_of_code ($w) {
    my @paths = @{ $w->{paths} };
    for my $dir (@{ $w->{dirs} }) {
        opendir my $handle, $dir or next;
        push @paths, map { "$dir/$_" } sort grep { /\.(?:pm|pl|psgi)\z/ } readdir $handle;
    }
    return join "\n", map { "$_ " . mark($_) } @paths;
}

# mark tells versions of a file apart; it is empty where there is none.
sub mark ($path) {
    my @is = Time::HiRes::stat($path) or return '';
    return "@is[0, 1, 7, 9, 10]";
}

1;
